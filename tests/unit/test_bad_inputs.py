"""Bad inputs: `@pytest.mark.bad_input` stands at the tests that hold the error of a kind, with fact, rule and remedy.

Most are told before any process group. What only rank 0 can see, in the folder of the run and at the meeting point, is
told by all ranks once they have met, or by each of them when they do not.
"""

from __future__ import annotations

from tests.marked import marks

# Kinds that were looked at, and why there is no such input here, or no such error.
NOTHING_TO_REFUSE = {
    "a batch that ranks and pinned micro-batches do not divide": "uneven shares are exact; refused is a rank with none",
    "several lengths of a run, or none": "there is one key, length, with its unit; others are unknown keys",
    "a GPU that is not there": "no key names a device; plan and doctor tell which is used",
    "NCCL on a CPU": "no key names a backend: it follows from the device",
    "compressed gradients on gloo": "they work there; what they do not go with is refused",
    "a hook under FSDP": "there is no FSDP; that of accelerate is refused",
    "unused parameters and a static graph": "no key reaches these switches of DDP; unused parameters are refused",
    "clipping under FSDP": "there is no FSDP; that of accelerate is refused",
    "an empty validation set, or an evaluation after the end": "a run is evaluated at its end, whatever the interval",
    "plots without matplotlib": "it is a direct dependency",
    "two metrics of one name": "names are ours; no key adds a metric",
}
# What is missing of an error.
NOT_MET = {
    "too many loading processes, or too little shared memory": "no warning below four per core; memory is for doctor",
    "a width or a number of samples that no memory holds": "models of the user's own are made to find out; many layers "
    "of Python objects are not counted",
}


def test_no_kind_of_bad_input_has_lost_its_test():
    held = {kind for mark in marks("bad_input") for kind in mark.arguments}
    assert NOT_MET.keys() <= held
    assert len(held | NOTHING_TO_REFUSE.keys()) == 80
