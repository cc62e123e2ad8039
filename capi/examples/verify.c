// Opens a device with libibverbs, and has uverbs prove it: one line differs from a program on libibverbs alone.
//
//     cc verify.c $(pkg-config --cflags --libs uverbs) -libverbs
//     ./a.out rxe0
//
// With a second argument, it waits for a line on standard input between listing and opening.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uverbs/ibverbs.h>

static struct ibv_device *find(struct ibv_device **list, const char *name)
{
    for (size_t i = 0; list[i] != NULL; i++)
        if (strcmp(ibv_get_device_name(list[i]), name) == 0)
            return list[i];
    return NULL;
}

int main(int argc, char **argv)
{
    struct uverbs_registry *registry;
    struct uverbs_error *error;
    struct ibv_device **list, *device;
    struct ibv_context *context;
    struct ibv_device_attr attributes;
    char guid[UVERBS_NAME_SIZE];
    int status = EXIT_FAILURE;

    if (argc < 2) {
        fprintf(stderr, "usage: verify DEVICE [wait]\n");
        return 2;
    }
    // Before libibverbs lists the devices.
    if (uverbs_registry_open(&registry, &error) < 0) {
        fprintf(stderr, "%s\n", uverbs_error_message(error));
        uverbs_error_free(error);
        return EXIT_FAILURE;
    }
    list = ibv_get_device_list(NULL);
    device = list != NULL ? find(list, argv[1]) : NULL;
    if (device == NULL) {
        fprintf(stderr, "libibverbs does not list %s\n", argv[1]);
        goto out;
    }
    if (argc > 2) {
        printf("listed\n");
        fflush(stdout);
        getchar();
    }
    context = uverbs_ibv_open(registry, device, &error);  // instead of ibv_open_device(device)
    if (context == NULL) {
        fprintf(stderr, "%s (errno %d)\n", uverbs_error_message(error), errno);
        uverbs_error_free(error);
        goto out;
    }
    if (ibv_query_device(context, &attributes) == 0) {
        uverbs_guid_text(uverbs_ibv_guid(attributes.node_guid), guid, sizeof guid);
        printf("proved: node GUID %s\n", guid);
        status = EXIT_SUCCESS;
    }
    ibv_close_device(context);
out:
    if (list != NULL)
        ibv_free_device_list(list);
    uverbs_registry_unref(registry);
    return status;
}
