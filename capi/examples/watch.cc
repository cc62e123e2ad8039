// Prints each change of the devices, from an event loop of its own.
//
//     c++ watch.cc $(pkg-config --cflags --libs uverbs)
//     ./a.out SECONDS

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include <poll.h>

#include <uverbs.h>

namespace {

template <typename T, T *(*unref)(T *)>
struct Unref {
    void operator()(T *object) const { unref(object); }
};

using Registry =
    std::unique_ptr<uverbs_registry, Unref<uverbs_registry, uverbs_registry_unref>>;
using Watch = std::unique_ptr<uverbs_watch, Unref<uverbs_watch, uverbs_watch_unref>>;
using Change = std::unique_ptr<uverbs_change, Unref<uverbs_change, uverbs_change_unref>>;

struct Failure {
    std::unique_ptr<uverbs_error, decltype(&uverbs_error_free)> error;
};

int check(int result, uverbs_error *error)
{
    if (result < 0)
        throw Failure{{error, uverbs_error_free}};
    return result;
}

// Prints what there is, without waiting.
void print(const Watch &watch)
{
    for (;;) {
        uverbs_change *next;
        uverbs_error *error;
        if (check(uverbs_watch_next(watch.get(), &next, &error), error) == 0)
            return;
        const Change change(next);
        std::printf("%s\n", uverbs_change_text(change.get()));
        std::fflush(stdout);
    }
}

void run(std::chrono::seconds seconds)
{
    uverbs_error *error;
    uverbs_registry *made;
    check(uverbs_registry_open(&made, &error), error);
    const Registry registry(made);
    uverbs_watch *begun;
    // All devices that are there, and then whatever changes.
    check(uverbs_watch_open_since(registry.get(), nullptr, &begun, &error), error);
    const Watch watch(begun);

    const auto end = std::chrono::steady_clock::now() + seconds;
    for (;;) {
        print(watch);
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            end - std::chrono::steady_clock::now());
        if (left.count() <= 0)
            return;
        pollfd item{uverbs_watch_fd(watch.get()), POLLIN, 0};
        poll(&item, 1, static_cast<int>(left.count()));
    }
}

}  // namespace

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::fprintf(stderr, "usage: watch SECONDS\n");
        return 2;
    }
    try {
        run(std::chrono::seconds(std::atoi(argv[1])));
    } catch (const Failure &failure) {
        std::fprintf(stderr, "%s\n", uverbs_error_message(failure.error.get()));
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
