// Opens a device, and prints what was checked on the way.
//
//     cc open.c $(pkg-config --cflags --libs uverbs)
//     ./a.out mlx5_0
//
// With a second argument, it waits for a line on standard input between listing and opening. A device that is
// replaced meanwhile is refused.

#include <stdio.h>
#include <stdlib.h>

#include <uverbs.h>

static void print(const struct uverbs_evidence *evidence)
{
    struct uverbs_check check;

    for (size_t i = 0; uverbs_evidence_get(evidence, i, &check, sizeof check) == 0; i++)
        printf("%s: %s: %s %s\n", check.step_name, check.what, check.found,
               check.held ? "ok" : "WRONG");
}

static int use(const struct uverbs_context *context, struct uverbs_error **error)
{
    struct uverbs_device_attr device;
    struct uverbs_port_attr port;
    struct uverbs_gid_entry gids[16];
    char guid[UVERBS_NAME_SIZE];
    int result, count;

    result = uverbs_query_device(context, &device, sizeof device, error);
    if (result < 0)
        return result;
    uverbs_guid_text(device.node_guid, guid, sizeof guid);
    printf("node GUID %s, %u ports\n", guid, device.phys_port_count);
    for (unsigned number = 1; number <= device.phys_port_count; number++) {
        result = uverbs_query_port(context, (uint8_t)number, &port, sizeof port, error);
        if (result < 0)
            return result;
        printf("port %u: state %u, %u Mb/s\n", number, port.state, (unsigned)port.rate);
    }
    count = uverbs_query_gids(context, gids, sizeof gids[0], 16, error);
    if (count < 0)
        return count;
    printf("%d GIDs\n", count);
    return 0;
}

static int run(const char *name, int waits, struct uverbs_error **error)
{
    struct uverbs_registry *registry = NULL;
    struct uverbs_list *list = NULL;
    struct uverbs_device *device = NULL;
    struct uverbs_context *context = NULL;
    int result;

    result = uverbs_registry_open(&registry, error);
    if (result < 0)
        goto out;
    result = uverbs_registry_list(registry, &list, error);
    if (result < 0)
        goto out;
    result = uverbs_list_by_name(list, name, &device, error);
    if (result < 0)
        goto out;
    if (waits) {
        printf("listed\n");
        fflush(stdout);
        getchar();
    }
    result = uverbs_open(device, &context, error);
    if (result < 0)
        goto out;
    print(uverbs_context_evidence(context));
    printf("proved: context %lld under index %lld\n",
           (long long)uverbs_evidence_context_number(uverbs_context_evidence(context)),
           (long long)uverbs_evidence_index(uverbs_context_evidence(context)));
    result = use(context, error);
out:
    uverbs_context_unref(context);
    uverbs_device_unref(device);
    uverbs_list_unref(list);
    uverbs_registry_unref(registry);
    return result;
}

int main(int argc, char **argv)
{
    struct uverbs_error *error;

    if (argc < 2) {
        fprintf(stderr, "usage: open DEVICE [wait]\n");
        return 2;
    }
    if (run(argv[1], argc > 2, &error) < 0) {
        fprintf(stderr, "%s\n", uverbs_error_message(error));
        print(uverbs_error_evidence(error));
        uverbs_error_free(error);
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
