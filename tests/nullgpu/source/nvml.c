// NVML (libnvidia-ml.so.1): which GPUs there are, and who uses their memory. A handle is the number of a GPU plus one;
// that of a part (MIG) has the number of the part, plus one, in its upper half.
#include "nullgpu.h"

#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

typedef struct {
    unsigned long long total, free, used;
} Memory;

static long num_gpus(void) { return setting("NULLGPU_COUNT", 2); }

static long num_parts(void *gpu) { return gpu == (void *)1 ? setting("NULLGPU_PARTS", 0) : 0; }

static void *part_of(void *gpu, long part) { return (void *)((part + 1) << 16 | (long)gpu); }

int nvmlInit_v2(void) { return setting("NULLGPU_NVML", SUCCESS); }
int nvmlInitWithFlags(unsigned flags) { return nvmlInit_v2(); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int error) {
    switch (error) {
    case 9: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = num_gpus();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **gpu) {
    *gpu = (void *)(long)(index + 1);
    return setting("NULLGPU_LOST", -1) == index ? GPU_IS_LOST : SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned room) {
    long gpu = ((long)device & 0xffff) - 1, part = ((long)device >> 16) - 1;
    if (part < 0)
        snprintf(text, room, "GPU-%08ld-aaaa-bbbb-cccc-dddddddddddd", gpu);
    else
        snprintf(text, room, "MIG-%08ld-%04ld-bbbb-cccc-dddddddddddd", gpu, part);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    char own[96];
    for (long index = 0; index < num_gpus(); index++) {
        void *gpu = (void *)(index + 1);
        for (long part = -1; part < num_parts(gpu); part++) {
            *device = part < 0 ? gpu : part_of(gpu, part);
            nvmlDeviceGetUUID(*device, own, sizeof own);
            if (!strcmp(own, uuid))
                return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetMaxMigDeviceCount(void *gpu, unsigned *count) {
    *count = num_parts(gpu);
    return *count ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *gpu, unsigned index, void **part) {
    *part = part_of(gpu, index);
    return index < num_parts(gpu) ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetCudaComputeCapability(void *gpu, int *major, int *minor) {
    *major = setting("NULLGPU_CAPABILITY", 90) / 10;
    *minor = setting("NULLGPU_CAPABILITY", 90) % 10;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    memory->total = setting("NULLGPU_BYTES", 80000000000);
    memory->used = setting("NULLGPU_OTHERS_BYTES", 0);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, void *processes) {
    *count = 0;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = setting("NULLGPU_DRIVER_CUDA", 13000);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *text, unsigned room) {
    snprintf(text, room, "%s", setting("NULLGPU_DRIVER_CUDA", 13000) < 13000 ? "550.54.15" : "580.65.06");
    return SUCCESS;
}

// Those that torch's allocator and NCCL look for.
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **gpu) {
    *gpu = (void *)1;
    return SUCCESS;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NOT_SUPPORTED; }
