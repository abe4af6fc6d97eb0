// The CUDA runtime: devices, memory, copies, streams, events, graphs and launches. Kernels do nothing.
//
// "Device" memory is mapped host memory, zero at first. Copies to it and from it are real; copies within it and memsets
// are counted only, as all that a GPU would do itself.
#define _GNU_SOURCE
#define __CUDA_API_VERSION_INTERNAL
#include "nullgpu.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

long nullgpu_counts[NUM_COUNTERS];

static int sticky_error;  // after an illegal access, every further call fails too
static int last_error;
static cudaStream_t capturing;  // the stream whose work is captured
static int capture_is_invalid;
static long fail_after = -1;  // launches, after which the device fails
static int fail_code;
static __thread int current_device;

static cudaError_t answer(int error) {
    last_error = error;
    return error;
}

#define FAIL_IF_BROKEN                                                                                                 \
    if (sticky_error)                                                                                                  \
    return answer(sticky_error)

__attribute__((constructor)) static void read_settings(void) {
    const char *on_uuid = getenv("NULLGPU_FAIL_UUID"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!on_uuid || (visible && strstr(visible, on_uuid)))
        fail_after = setting("NULLGPU_FAIL_AFTER", -1);
    fail_code = setting("NULLGPU_FAIL_CODE", cudaErrorIllegalAddress);
    sticky_error = setting("NULLGPU_FIRST_CALL", 0);
}

// -- the device

static int capability(void) { return setting("NULLGPU_CAPABILITY", 90); }

static int driver_cuda(void) { return setting("NULLGPU_DRIVER_CUDA", CUDART_VERSION); }

static size_t total_bytes(void) { return setting("NULLGPU_BYTES", 80000000000); }

static size_t bytes_of_others(void) { return setting("NULLGPU_OTHERS_BYTES", 0); }

cudaError_t cudaGetDeviceCount(int *count) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = 0;
    if (driver_cuda() / 1000 < CUDART_VERSION / 1000)
        return answer(cudaErrorInsufficientDriver);
    if (!visible)
        *count = setting("NULLGPU_COUNT", 2);
    else if (*visible)
        for (*count = 1; *visible; visible++)
            *count += *visible == ',';
    return *count ? cudaSuccess : answer(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {  // those of an H100
    memset(found, 0, sizeof *found);
    strcpy(found->name, "NVIDIA Null");
    found->major = capability() / 10;
    found->minor = capability() % 10;
    found->totalGlobalMem = total_bytes();
    found->multiProcessorCount = 132;
    found->warpSize = 32;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxGridSize[0] = INT32_MAX;
    found->maxGridSize[1] = found->maxGridSize[2] = UINT16_MAX;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxBlocksPerMultiProcessor = 32;
    found->sharedMemPerBlock = 48 << 10;
    found->sharedMemPerBlockOptin = 227 << 10;
    found->sharedMemPerMultiprocessor = 228 << 10;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->l2CacheSize = 50 << 20;
    found->textureAlignment = 512;
    found->totalConstMem = 65536;
    found->unifiedAddressing = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp of;
    cudaGetDeviceProperties(&of, device);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = of.maxThreadsPerBlock; break;
    case cudaDevAttrMaxBlockDimX: *value = of.maxThreadsDim[0]; break;
    case cudaDevAttrMaxBlockDimY: *value = of.maxThreadsDim[1]; break;
    case cudaDevAttrMaxBlockDimZ: *value = of.maxThreadsDim[2]; break;
    case cudaDevAttrMaxGridDimX: *value = of.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = of.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = of.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = of.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = of.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = of.sharedMemPerMultiprocessor; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = of.regsPerBlock; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = of.regsPerMultiprocessor; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = of.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = of.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrMultiProcessorCount: *value = of.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = of.warpSize; break;
    case cudaDevAttrL2CacheSize: *value = of.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = of.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = of.minor; break;
    default: *value = 1;
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = driver_cuda();
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int other) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device) {
    snprintf(text, room, "0000:00:%02x.0", device + 1);
    return cudaSuccess;
}

// -- errors

const char *cudaGetErrorName(cudaError_t error) {
    switch ((int)error) {
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorDevicesUnavailable: return "cudaErrorDevicesUnavailable";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    default: return "cudaErrorUnknown";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    switch ((int)error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorDevicesUnavailable: return "all CUDA-capable devices are busy or unavailable";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "unknown error";
    }
}

cudaError_t cudaGetLastError(void) {
    int error = last_error;
    last_error = sticky_error;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return last_error; }

// -- memory

typedef struct {
    char *start;
    size_t bytes;
    enum cudaMemoryType type;
} Block;

static Block *blocks;
static int num_blocks, room_for_blocks;
static size_t used_bytes, peak_bytes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

size_t nullgpu_peak(void) { return peak_bytes; }

void nullgpu_reset_peak(void) { peak_bytes = used_bytes; }

static cudaError_t map(void **start, size_t bytes, enum cudaMemoryType type) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (type == cudaMemoryTypeDevice ? MAP_NORESERVE : 0);
    pthread_mutex_lock(&lock);
    int fits = type != cudaMemoryTypeDevice || used_bytes + bytes + bytes_of_others() <= total_bytes();
    *start = fits ? mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, flags, -1, 0) : MAP_FAILED;
    if (*start != MAP_FAILED) {
        if (num_blocks == room_for_blocks) {
            room_for_blocks = room_for_blocks ? 2 * room_for_blocks : 1024;
            blocks = realloc(blocks, room_for_blocks * sizeof *blocks);
        }
        blocks[num_blocks++] = (Block){*start, bytes, type};
        if (type == cudaMemoryTypeDevice)
            used_bytes += bytes;
        if (used_bytes > peak_bytes)
            peak_bytes = used_bytes;
    }
    pthread_mutex_unlock(&lock);
    return *start == MAP_FAILED ? answer(cudaErrorMemoryAllocation) : cudaSuccess;
}

static cudaError_t unmap(void *start) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_blocks; i++)
        if (blocks[i].start == start) {
            if (blocks[i].type == cudaMemoryTypeDevice)
                used_bytes -= blocks[i].bytes;
            munmap(start, blocks[i].bytes ? blocks[i].bytes : 1);
            blocks[i] = blocks[--num_blocks];
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **start, size_t bytes) {
    FAIL_IF_BROKEN;
    nullgpu_counts[ALLOCATIONS]++;
    return map(start, bytes, cudaMemoryTypeDevice);
}

cudaError_t cudaFree(void *start) { return unmap(start); }

cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) {
    FAIL_IF_BROKEN;
    nullgpu_counts[PINNED]++;
    return map(start, bytes, cudaMemoryTypeHost);
}

cudaError_t cudaFreeHost(void *start) { return unmap(start); }

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    FAIL_IF_BROKEN;
    *total = total_bytes();
    *free = *total - used_bytes - bytes_of_others();
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *pointer) {
    memset(found, 0, sizeof *found);
    found->devicePointer = found->hostPointer = (void *)pointer;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_blocks; i++)
        if ((char *)pointer >= blocks[i].start && (char *)pointer < blocks[i].start + blocks[i].bytes)
            found->type = blocks[i].type;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

static cudaError_t copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    FAIL_IF_BROKEN;
    if (kind == cudaMemcpyHostToDevice) {
        nullgpu_counts[TO_DEVICE]++;
        nullgpu_counts[BYTES_TO_DEVICE] += bytes;
        memcpy(to, from, bytes);
    } else if (kind == cudaMemcpyDeviceToHost) {
        nullgpu_counts[FROM_DEVICE]++;
        if (bytes <= sizeof(double))
            memset(to, 0, bytes);  // a scalar that no kernel has computed: always 0, never what was there before
        else
            memcpy(to, from, bytes);
    } else
        nullgpu_counts[ON_DEVICE]++;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, bytes, kind);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    nullgpu_counts[SYNCS]++;
    return copy(to, from, bytes, kind);
}

cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) {
    FAIL_IF_BROKEN;
    nullgpu_counts[MEMSETS]++;
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **start, const void *symbol) {
    static char constants[1 << 20];
    *start = constants;
    return cudaSuccess;
}

// -- streams, events, synchronisation: all work is done when it is asked for, so that waiting is only counted

static void *next_name(void) {
    static long last = 0x1000;
    return (void *)__sync_add_and_fetch(&last, 16);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    nullgpu_counts[STREAMS]++;
    *stream = next_name();
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = next_name();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    FAIL_IF_BROKEN;
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    FAIL_IF_BROKEN;
    if (capturing && stream == capturing) {
        capture_is_invalid = 1;
        return answer(cudaErrorStreamCaptureUnsupported);
    }
    nullgpu_counts[SYNCS]++;
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaStreamSynchronize(NULL); }

cudaError_t cudaDeviceSynchronize(void) { return cudaStreamSynchronize(capturing); }

// -- graphs

static enum cudaStreamCaptureStatus status_of(cudaStream_t stream) {
    if (!capturing || stream != capturing)
        return cudaStreamCaptureStatusNone;
    return capture_is_invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = status_of(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *num_nodes) {
    *status = status_of(stream);
    if (id)
        *id = 1;
    if (graph)
        *graph = (cudaGraph_t)0x77;
    if (nodes)
        *nodes = NULL;
    if (num_nodes)
        *num_nodes = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = stream;
    capture_is_invalid = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = NULL;
    *graph = capture_is_invalid ? NULL : (cudaGraph_t)0x77;
    return capture_is_invalid ? answer(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *number) {
    *number = 1;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    *made = (cudaGraphExec_t)0x78;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    FAIL_IF_BROKEN;
    nullgpu_counts[GRAPH_LAUNCHES]++;
    return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }

// -- kernels: registered by name when torch is loaded, found by address when they are launched

typedef struct {
    const void *function;
    const char *name;
    long launches;
} Kernel;

static Kernel *kernels;  // a hash table with open addresses
static long num_kernels, room_for_kernels;

static Kernel *kernel_of(const void *function) {
    unsigned long place = ((unsigned long)function >> 4) * 0x9E3779B97F4A7C15ul % room_for_kernels;
    while (kernels[place].function && kernels[place].function != function)
        place = (place + 1) % room_for_kernels;
    return kernels + place;
}

void __cudaRegisterFunction(void **binary, const char *function, char *device_name, const char *name, int limit,
                            uint3 *thread, uint3 *block, dim3 *block_size, dim3 *grid_size, int *warp) {
    if (2 * num_kernels >= room_for_kernels) {
        Kernel *old = kernels;
        long room = room_for_kernels;
        room_for_kernels = room ? 2 * room : 1 << 17;
        kernels = calloc(room_for_kernels, sizeof *kernels);
        for (long i = 0; i < room; i++)
            if (old[i].function)
                *kernel_of(old[i].function) = old[i];
        free(old);
    }
    Kernel *kernel = kernel_of(function);
    num_kernels += !kernel->function;
    kernel->function = function;
    kernel->name = name;
}

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) {}

void __cudaUnregisterFatBinary(void **handle) {}

void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t bytes,
                       int constant, int global) {}

static __thread struct {
    dim3 grid, block;
    size_t shared_bytes;
    struct CUstream_st *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, struct CUstream_st *stream) {
    configuration.grid = grid;
    configuration.block = block;
    configuration.shared_bytes = shared_bytes;
    configuration.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared_bytes = configuration.shared_bytes;
    *(struct CUstream_st **)stream = configuration.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}

// From now on every call fails with ``code``, as after an illegal access.
void nullgpu_break(int code) { sticky_error = code; }

int nullgpu_launch(void) {
    FAIL_IF_BROKEN;
    nullgpu_counts[LAUNCHES]++;
    if (fail_after >= 0 && nullgpu_counts[LAUNCHES] >= fail_after)
        return answer(sticky_error = fail_code);
    return cudaSuccess;
}

static cudaError_t launch(const void *function) {
    Kernel *kernel = room_for_kernels ? kernel_of(function) : NULL;
    if (kernel && kernel->function)
        kernel->launches++;
    return nullgpu_launch();
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                             cudaStream_t stream) {
    return launch(function);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_bytes,
                               cudaStream_t stream) {
    return launch(kernel);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *function, void **arguments) {
    return launch(function);
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->binaryVersion = found->ptxVersion = capability();
    found->maxDynamicSharedSizeBytes = 48 << 10;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *number, const void *function, int block,
                                                                   size_t shared_bytes, unsigned flags) {
    *number = 2;
    return cudaSuccess;
}

static int nothing(void) { return 0; }

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *function = nothing;
    if (result)
        *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// Calls ``tell`` with the mangled name and the launches of each kernel since the last reset.
void nullgpu_kernels(void (*tell)(const char *, long)) {
    for (long i = 0; i < room_for_kernels; i++)
        if (kernels[i].launches)
            tell(kernels[i].name, kernels[i].launches);
}

void nullgpu_reset(void) {
    for (long i = 0; i < room_for_kernels; i++)
        kernels[i].launches = 0;
    memset(nullgpu_counts, 0, sizeof nullgpu_counts);
}
