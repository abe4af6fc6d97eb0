// Calls of cuBLAS and cuDNN of which only the first argument or none matters: no headers, so no long lists of
// arguments.
#include "nullgpu.h"

static int computed(enum Counter counter) {
    nullgpu_counts[counter]++;
    nullgpu_launch();
    return 0;
}

static int product(void) {
    computed(PRODUCTS);
    return setting("NULLGPU_CUBLAS", 0);
}

int cublasSgemm_v2(void) { return product(); }
int cublasGemmEx(void) { return product(); }
int cublasSgemmStridedBatched(void) { return product(); }
int cublasGemmStridedBatchedEx(void) { return product(); }
int cublasLtMatmul(void) { return product(); }

static int norm(void) {
    computed(NORMS);
    return setting("NULLGPU_CUDNN", 0);
}

int cudnnBatchNormalizationForwardTrainingEx(void) { return norm(); }
int cudnnBatchNormalizationForwardInference(void) { return norm(); }
int cudnnBatchNormalizationBackwardEx(void) { return norm(); }

int cublasCreate_v2(void **handle) {
    *handle = (void *)0x11;
    return setting("NULLGPU_CUBLAS", 0);
}

int cublasLtCreate(void **handle) {
    *handle = (void *)0x12;
    return 0;
}

int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0; }

int cublasGetStream_v2(void *handle, void **stream) {
    *stream = 0;
    return 0;
}
