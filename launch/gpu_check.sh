#!/usr/bin/env bash
# Usage: launch/gpu_check.sh [cpu]
#
# What must be seen on a GPU before a long run: about ten minutes on one card, more on several. Every step has its own
# limit, goes on after a failure, and prints one line; the whole output of each lies in $OUT.
#
#   tests        kernels against their reference, all kinds of runs, host waits, deterministic bits, predicted memory,
#                fp16 resumed; on two cards and more also a rank that raises, hangs or is killed
#   speed        LARS and LAMB against torch's fused optimizers; ResNet-50 and GPT-2 against a hand-written script and
#                accelerate; loading; all-reduces and the step that they predict for more ranks
#   cpu          the same steps on a machine without GPU, tiny: whether this script itself works
#
#   OUT          folder of the outputs; default: gpu_check
#   PYTHON       of an environment in which largebatch and pytest are installed; default: that of launch/setup_venv.sh dev
#
# Exit code: the number of steps that failed.

set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in
    "") device=cuda ;;
    cpu) device=cpu ;;
    *)
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
if [[ -z ${PYTHON:-} ]]; then
    # shellcheck source=launch/setup_venv.sh
    source "$here/setup_venv.sh" dev || exit 1
    PYTHON=python
fi
OUT=${OUT:-$PWD/gpu_check}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$here/.." || exit 1
export WANDB_MODE=offline COLUMNS=140
if [[ $device == cuda ]]; then
    cards=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    if [[ $cards == 0 ]]; then
        echo "gpu_check: torch sees no GPU. launch/gpu_check.sh cpu rehearses the steps without one." >&2
        exit 2
    fi
    "$PYTHON" -c 'import torch; print(torch.__version__, *{torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())})'
    patience=1
    optim=("shapes=resnet50,bert_base" rounds=30 device=cuda)
    images=512 size=224 micro=128 batch=256 context=1024 layers=12 heads=12 width=768 sequences=32 at_once=8
else
    cards=2 patience=6
    export LARGEBATCH_REHEARSAL=cpu OMP_NUM_THREADS=1
    optim=(shapes=resnet50 rounds=5 threads=1)
    images=16 size=32 micro=4 batch=8 context=16 layers=1 heads=2 width=16 sequences=8 at_once=4
fi

failed=0
step() {
    local name=$1 limit=$2 started=$SECONDS rc
    shift 2
    timeout $((limit * patience)) "$@" >"$OUT/$name.log" 2>&1
    rc=$?
    ((rc == 0)) || ((++failed))
    printf '%-24s rc %3d  %4d s  %s\n' "$name" "$rc" $((SECONDS - started)) \
        "$(grep -v '^[[:space:]]*$' "$OUT/$name.log" | tail -n 1 | cut -c1-110)"
}
alone=("$PYTHON" -m largebatch)
together=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$cards" -m largebatch) # a process per card

step doctor 60 "${alone[@]}" doctor
step kernels 120 "$PYTHON" -m pytest -q tests/unit/optim/test_cuda.py
step runs 240 "$PYTHON" -m pytest -q tests/device/on_gpu

step bench_optim 120 "${alone[@]}" bench optim "${optim[@]}" json="$OUT/optim.json"

"$PYTHON" -c "import numpy as np; np.save('$OUT/tokens.npy', np.random.default_rng(0).integers(0, 50304, 40 * $sequences * ($context + 1)).astype(np.uint16))"
resnet50=(model=resnet50 model.stem=imagenet data=synthetic data.num_classes=10 data.num_channels=3
    "data.train.shape=[3,$size,$size]" data.train.num_samples="$images" "data.validation.shape=[3,$size,$size]"
    data.validation.num_samples=8 batch.max_micro="$micro" logger=none)
gpt2=(data=text "data.path=$OUT/tokens.npy" data.vocab_size=50304 data.train.tokenizer=null
    data.train.vocab_size=50304 data.validation.tokenizer=null data.validation.vocab_size=50304 data.context_length="$context" model.num_layers="$layers"
    model.num_heads="$heads" model.width="$width" optimizer=adamw batch.max_micro="$at_once" logger=none)
step resnet50 150 "${alone[@]}" bench loop "${resnet50[@]}" batch.total="$batch"
step gpt2 150 "${alone[@]}" bench loop "${gpt2[@]}" batch.total="$sequences"
step digits 100 "${alone[@]}" bench loop batch.total=512 logger=none
step bench_data 60 "${alone[@]}" bench data
if ((cards > 1)); then
    step resnet50_all 200 "${together[@]}" bench loop "${resnet50[@]}" batch.total=$((batch * cards))
    step gpt2_all 200 "${together[@]}" bench loop "${gpt2[@]}" batch.total=$((sequences * cards))
    step communication 100 "${together[@]}" bench communication "${resnet50[@]}" batch.total=$((batch * cards)) \
        run.dir="$OUT/communication"
fi
for name in bench_optim resnet50 gpt2 digits bench_data resnet50_all gpt2_all communication; do
    [[ ! -f $OUT/$name.log ]] || cat "$OUT/$name.log"
done
echo "gpu_check: $failed steps failed; outputs in $OUT"
exit "$failed"
