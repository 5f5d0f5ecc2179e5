/* LAMB and LARS: sums of squares, then the step. `compiled.py` calls it, `compiler.py` compiles it.

   The file includes itself for float and for double. Tensors are cut into blocks, and tensors that follow each other
   form a wave that fits in the cache: both passes over a wave, the second one backwards, then the next wave. Threads
   take blocks from one counter, and the sums of a block have a place of their own: which thread had it changes no bit.
   A row of ROW elements is summed up in the type itself, rows in double, which keeps a norm right to 1e-7. The flags
   allow no reassociation but in the reductions marked here, and NaN and inf stay what they are. */
#ifndef REAL
#include <math.h>
#include <sched.h>
#include <stdint.h>

#define ROW 256
#define READY (-1)

typedef struct {
    void *const *tensors;    /* [num_tensors][4]: w, g, and the state */
    const int64_t *blocks;   /* [num_blocks][4]: tensor, first element, number of elements, wave */
    const int64_t *visits;   /* [num_visits]: 2 block, and 1 more in the second pass */
    int64_t num_visits;
    int64_t num_taken;       /* visits that a thread has taken, counted up by all of them */
    int64_t *num_left;       /* [num_waves]: blocks before the end of the first pass, READY when there are rates */
    void (*set_rates)(int64_t wave);
    double *of_tensor;       /* [num_tensors][3]: rate of the second pass, and what the kernel says */
    const double *of_group;  /* what the kernel says */
    double *sums;            /* [num_blocks][2]: of squared weights, of squared directions */
    int64_t form;            /* what the kernel says */
} Job;

typedef void Pass(Job *job, int64_t block);

static void run(Job *job, Pass *first, Pass *second) {
    int64_t number;
    while ((number = __atomic_fetch_add(&job->num_taken, 1, __ATOMIC_RELAXED)) < job->num_visits) {
        const int64_t block = job->visits[number] / 2, wave = job->blocks[4 * block + 3];
        if (job->visits[number] % 2) {
            /* Whoever works on the first pass took its block before this one was taken, so it will come to an end. */
            while (__atomic_load_n(&job->num_left[wave], __ATOMIC_ACQUIRE) != READY) sched_yield();
            second(job, block);
            continue;
        }
        first(job, block);
        if (__atomic_sub_fetch(&job->num_left[wave], 1, __ATOMIC_ACQ_REL) == 0) {
            job->set_rates(wave);
            __atomic_store_n(&job->num_left[wave], READY, __ATOMIC_RELEASE);
        }
    }
}

/* Forms are known to the compiler in every loop: no branch inside, and a decay of 0 is not 0 * inf. */
enum { NOWHERE, INSIDE, OUTSIDE };      /* of LAMB: where the decay goes */
enum { JOINT = 1, DECAYS = 2, NESTEROV = 4 }; /* of LARS: any of them */
#define INLINE static inline __attribute__((always_inline))

#define PASTE(name, type) name##_##type
#define NAMED(name, type) PASTE(name, type)
#define THIS(name) NAMED(name, REAL)

#define REAL float
#define SQRT sqrtf
#include "kernels.c"
#undef REAL
#undef SQRT
#define REAL double
#define SQRT sqrt
#include "kernels.c"

#else

/* Asks for the row of ROW elements after this one: by itself an Intel Xeon fetches four streams too late, and LAMB's step
   took 6 % longer. Beyond the end of a tensor it does nothing. */
#define FETCH_NEXT(row, array) \
    for (int64_t k = (row) + ROW; k < (row) + 2 * ROW; k += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch((array) + k)
#define TENSOR(job, block, which) \
    ((REAL *)(job)->tensors[4 * (job)->blocks[4 * (block)] + (which)] + (job)->blocks[4 * (block) + 1])
#define NUMEL(job, block) ((job)->blocks[4 * (block) + 2])
#define OF_TENSOR(job, block, which) ((REAL)(job)->of_tensor[3 * (job)->blocks[4 * (block)] + (which)])

/* m = beta1 m + share g; v = beta2 v + (1 - beta2) g^2; sums of w^2 and u^2.
   of_tensor: rate, scale and eps of u = scale m / (sqrt(v) + eps); of_group: beta1, share, beta2, 1 - beta2, decay, what g is
   multiplied by. Inside, u has + decay w; outside, w has - decay w. */
INLINE void THIS(moments_of)(Job *job, int64_t block, const int place) {
    const REAL *w = TENSOR(job, block, 0), *g = TENSOR(job, block, 1);
    REAL *m = TENSOR(job, block, 2), *v = TENSOR(job, block, 3);
    const REAL scale = OF_TENSOR(job, block, 1), eps = OF_TENSOR(job, block, 2);
    const double *all = job->of_group;
    const REAL beta1 = all[0], share = all[1], beta2 = all[2], rest2 = all[3], decay = all[4], factor = all[5];
    const int64_t numel = NUMEL(job, block);
    double of_w = 0, of_u = 0;
    for (int64_t row = 0; row < numel; row += ROW) {
        const int64_t end = row + ROW < numel ? row + ROW : numel;
        REAL row_w = 0, row_u = 0;
        FETCH_NEXT(row, w);
        FETCH_NEXT(row, g);
        FETCH_NEXT(row, m);
        FETCH_NEXT(row, v);
#pragma omp simd reduction(+ : row_w, row_u)
        for (int64_t i = row; i < end; i++) {
            const REAL grad = factor * g[i], first = beta1 * m[i] + share * grad;
            const REAL second = beta2 * v[i] + rest2 * grad * grad;
            const REAL weight = place == OUTSIDE ? w[i] - decay * w[i] : w[i];
            REAL u = scale * first / (SQRT(second) + eps);
            if (place == INSIDE) u += decay * weight;
            m[i] = first;
            v[i] = second;
            row_w += weight * weight;
            row_u += u * u;
        }
        of_w += row_w;
        of_u += row_u;
    }
    job->sums[2 * block] = of_w;
    job->sums[2 * block + 1] = of_u;
}

/* w = w - rate u, with u from the moments; the numbers as above. */
INLINE void THIS(update_of)(Job *job, int64_t block, const int place) {
    REAL *w = TENSOR(job, block, 0);
    const REAL *m = TENSOR(job, block, 2), *v = TENSOR(job, block, 3);
    const REAL rate = OF_TENSOR(job, block, 0), scale = OF_TENSOR(job, block, 1), eps = OF_TENSOR(job, block, 2);
    const REAL decay = job->of_group[4];
    const int64_t numel = NUMEL(job, block);
#pragma omp simd
    for (int64_t i = 0; i < numel; i++) {
        const REAL weight = place == OUTSIDE ? w[i] - decay * w[i] : w[i];
        REAL u = scale * m[i] / (SQRT(v[i]) + eps);
        if (place == INSIDE) u += decay * weight;
        w[i] = weight - rate * u;
    }
}

static void THIS(moments)(Job *job, int64_t block) {
    if (job->form == INSIDE) THIS(moments_of)(job, block, INSIDE);
    else if (job->form == OUTSIDE) THIS(moments_of)(job, block, OUTSIDE);
    else THIS(moments_of)(job, block, NOWHERE);
}

static void THIS(update)(Job *job, int64_t block) {
    if (job->form == INSIDE) THIS(update_of)(job, block, INSIDE);
    else if (job->form == OUTSIDE) THIS(update_of)(job, block, OUTSIDE);
    else THIS(update_of)(job, block, NOWHERE);
}

void THIS(lamb)(Job *job) { run(job, THIS(moments), THIS(update)); }

/* Sums of w^2 and d^2, d = g + decay w where it is joint, else g; of_group: decay. */
INLINE void THIS(norms_of)(Job *job, int64_t block, const int is_joint) {
    const REAL *w = TENSOR(job, block, 0), *g = TENSOR(job, block, 1);
    const REAL decay = job->of_group[0];
    const int64_t numel = NUMEL(job, block);
    double of_w = 0, of_d = 0;
    for (int64_t row = 0; row < numel; row += ROW) {
        const int64_t end = row + ROW < numel ? row + ROW : numel;
        REAL row_w = 0, row_d = 0;
        FETCH_NEXT(row, w);
        FETCH_NEXT(row, g);
#pragma omp simd reduction(+ : row_w, row_d)
        for (int64_t i = row; i < end; i++) {
            const REAL direction = is_joint ? g[i] + decay * w[i] : g[i];
            row_w += w[i] * w[i];
            row_d += direction * direction;
        }
        of_w += row_w;
        of_d += row_d;
    }
    job->sums[2 * block] = of_w;
    job->sums[2 * block + 1] = of_d;
}

/* v = momentum v + rate (g + decay w); w = w - outer v, or one momentum further.
   of_tensor: rate; of_group: decay, momentum, outer. */
INLINE void THIS(step_of)(
    Job *job, int64_t block, const int decays, const int looks_ahead) {
    REAL *w = TENSOR(job, block, 0), *v = TENSOR(job, block, 2);
    const REAL *g = TENSOR(job, block, 1);
    const REAL decay = job->of_group[0], momentum = job->of_group[1], outer = job->of_group[2];
    const REAL rate = OF_TENSOR(job, block, 0);
    const int64_t numel = NUMEL(job, block);
#pragma omp simd
    for (int64_t i = 0; i < numel; i++) {
        const REAL push = rate * (decays ? g[i] + decay * w[i] : g[i]), velocity = momentum * v[i] + push;
        v[i] = velocity;
        w[i] -= outer * (looks_ahead ? momentum * velocity + push : velocity);
    }
}

static void THIS(norms)(Job *job, int64_t block) {
    if (job->form & JOINT) THIS(norms_of)(job, block, 1);
    else THIS(norms_of)(job, block, 0);
}

static void THIS(step)(Job *job, int64_t block) {
    if (job->form & DECAYS) {
        if (job->form & NESTEROV) THIS(step_of)(job, block, 1, 1);
        else THIS(step_of)(job, block, 1, 0);
    } else {
        if (job->form & NESTEROV) THIS(step_of)(job, block, 0, 1);
        else THIS(step_of)(job, block, 0, 0);
    }
}

void THIS(lars)(Job *job) { run(job, THIS(norms), THIS(step)); }

#undef FETCH_NEXT
#undef TENSOR
#undef NUMEL
#undef OF_TENSOR
#endif
