// What the parts of the null GPU share: its settings (environment variables, see README.md) and its counters.
#pragma once

#include <stdlib.h>

// The order of the counters is that of COUNTERS in tests/nullgpu/machine.py.
enum Counter {
    LAUNCHES,
    TO_DEVICE,
    FROM_DEVICE,
    ON_DEVICE,
    MEMSETS,
    SYNCS,
    ALLOCATIONS,
    PINNED,
    CONVOLUTIONS,
    PRODUCTS,
    NORMS,
    BYTES_TO_DEVICE,
    GRAPH_LAUNCHES,
    STREAMS,
    NUM_COUNTERS
};

extern long nullgpu_counts[NUM_COUNTERS];

// The value of an environment variable that is a whole number.
static inline long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

// A launch of a kernel, by torch or by a library. Returns 0, or the CUDA error code that the settings ask for.
int nullgpu_launch(void);
