// A kernel as the emulator's Python side sees it: its parameter types, and a launch with typed arguments.
#pragma once
#include "threads.h"

// In the counting mode every call is inlined, as on a GPU: an access is known by the place of its code.
#ifdef EMULATED_COUNTED
#define EMULATED_INLINES_ALL __attribute__((flatten))
#else
#define EMULATED_INLINES_ALL
#endif

namespace emulated {

// One parameter, or what it points to.
struct Parameter {
    char is_pointer;
    char is_constant;  // a pointer to const
    char kind;         // f float, i signed, u unsigned, b bool, v void, s any other type
    char reserved;
    unsigned size;     // bytes of the value or of what it points to; 0 for void
};

// Where a kernel's static shared memory lies: the thread-local segment of its library.
struct StaticShared {
    unsigned long long module;  // the segment's number with the dynamic linker
    unsigned long long bytes;
};

// Memory that an argument points to, for the builds that watch accesses.
struct Region {
    char* start;
    unsigned long long bytes;
    const char* name;
    unsigned itemsize;
    int constant;  // 1 where no argument lets the kernel write to it
};

// What a launch is searched for.
enum class Search : int { none, memory, races, initialisation };

// What kind of fault ended a launch.
enum class Fault : int { none, synchronisation, memory, races, initialisation, other };

struct Launch {
    unsigned grid[3];
    unsigned block[3];
    StaticShared static_shared;
    unsigned long long dynamic_shared;  // bytes
    void** arguments;                   // one pointer to the value of each parameter
    unsigned long long seed;
    int order;                          // Order in ready_queue.h
    int landing;                        // Landing in asynchronous_copies.h
    int cooperative;                    // 1: every block is resident from the start
    Search search;
    int region_count;
    const Region* regions;              // only in builds that watch accesses
    unsigned long long value_bytes;     // of the arguments' values, which lie in one piece
    unsigned short fill;                // repeated, what memory holds that nobody wrote
    unsigned short unwritten_read;      // set where such memory was read; `message` says where
    Fault failed;                       // not none where `message` holds an error
    unsigned long long places[2];       // code that the message calls <place 0> and <place 1>
    char message[1000];
};

struct KernelDescription {
    void (*launch)(Launch&);
    StaticShared (*static_shared)();
    const Parameter* parameters;
    int parameter_count;
    int launch_bound;  // threads a block that __launch_bounds__ allows; 0 where there is none
};

// Runs every block of the grid: body(argument) once for each thread.
EMULATED_API void run_grid(Launch& launch, void (*body)(void*), void* argument);

// The thread-local segment of the library that contains `address`.
EMULATED_API StaticShared find_static_shared(const void* address);

template <typename T>
constexpr char kind_of() {
    if constexpr (same<T, bool>) return 'b';
    else if constexpr (same<T, void>) return 'v';
    else if constexpr (__is_class(T) || __is_union(T) || __is_enum(T)) return 's';
    else if constexpr (T(0.5) != T(0)) return 'f';
    else return T(-1) < T(0) ? 'i' : 'u';
}

template <typename T>
struct Described {
    using Value = T;
    static constexpr bool pointer = false, constant = false;
};
template <typename T>
struct Described<const T> : Described<T> {};
template <typename T>
struct Described<T*> {
    using Value = T;
    static constexpr bool pointer = true, constant = false;
};
template <typename T>
struct Described<const T*> {
    using Value = T;
    static constexpr bool pointer = true, constant = true;
};

template <typename T>
constexpr unsigned size_of() {
    if constexpr (same<T, void>) return 0;
    else return sizeof(T);
}

template <typename T>
constexpr Parameter describe() {
    using D = Described<T>;
    return {D::pointer, D::constant, kind_of<typename D::Value>(), 0, size_of<typename D::Value>()};
}

template <int... indices>
struct Indices {};
template <int count, int... indices>
struct Counted : Counted<count - 1, count - 1, indices...> {};
template <int... indices>
struct Counted<0, indices...> {
    using type = Indices<indices...>;
};

template <auto kernel>
struct Kernel;

template <typename... Parameters, void (*kernel)(Parameters...)>
struct Kernel<kernel> {
    static constexpr int parameter_count = sizeof...(Parameters);
    static constexpr Parameter parameters[parameter_count + 1] = {describe<Parameters>()..., {}};

    static void body(void* arguments) {
        call(static_cast<void**>(arguments), typename Counted<parameter_count>::type{});
    }
    template <int... indices>
    EMULATED_INLINES_ALL static void call(void** arguments, Indices<indices...>) {
        kernel(*static_cast<Parameters*>(arguments[indices])...);
    }
    static void launch(Launch& launch) { run_grid(launch, body, launch.arguments); }
    static StaticShared static_shared() { return find_static_shared(reinterpret_cast<const void*>(&launch)); }
};

}  // namespace emulated

// Exports the kernel named by the C++ expression (which may hold commas) under `symbol`.
#define EMULATED_EXPORT_KERNEL(symbol, bound, ...)                                                    \
    extern "C" EMULATED_API const emulated::KernelDescription symbol;                                 \
    const emulated::KernelDescription symbol = {                                                      \
        emulated::Kernel<&__VA_ARGS__>::launch, emulated::Kernel<&__VA_ARGS__>::static_shared,        \
        emulated::Kernel<&__VA_ARGS__>::parameters, emulated::Kernel<&__VA_ARGS__>::parameter_count, bound};
