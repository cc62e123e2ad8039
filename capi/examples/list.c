// Lists the devices: one line each, with name, node, index, driver and node GUID, and the PCI address if there is one.
//
//     cc list.c $(pkg-config --cflags --libs uverbs)

#include <stdio.h>
#include <stdlib.h>

#include <uverbs.h>

static int fail(struct uverbs_error *error)
{
    fprintf(stderr, "%s\n", uverbs_error_message(error));
    uverbs_error_free(error);
    return EXIT_FAILURE;
}

static void print(const struct uverbs_device *device)
{
    struct uverbs_device_facts facts;
    struct uverbs_parent parent;
    struct uverbs_error *error;
    char label[300], driver[UVERBS_NAME_SIZE], guid[UVERBS_NAME_SIZE];

    uverbs_device_label(device, label, sizeof label);
    if (uverbs_device_query(device, &facts, sizeof facts, &error) < 0 ||
        uverbs_device_parent(device, &parent, sizeof parent, &error) < 0) {
        // Each message names the device.
        printf("%s\n", uverbs_error_message(error));
        uverbs_error_free(error);
        return;
    }
    uverbs_driver_name(facts.driver_id, driver, sizeof driver);
    uverbs_guid_text(facts.node_guid, guid, sizeof guid);
    printf("%s index %u driver %s node GUID %s", label, (unsigned)facts.index, driver, guid);
    if (parent.function_kind != UVERBS_FUNCTION_NONE)
        printf(" PCI %s", parent.pci.text);
    printf("\n");
}

int main(void)
{
    struct uverbs_registry *registry;
    struct uverbs_list *list;
    struct uverbs_error *error;

    if (uverbs_registry_open(&registry, &error) < 0)
        return fail(error);
    if (uverbs_registry_list(registry, &list, &error) < 0) {
        registry = uverbs_registry_unref(registry);
        return fail(error);
    }
    for (size_t i = 0; i < uverbs_list_count(list); i++)
        print(uverbs_list_get(list, i));
    for (size_t i = 0; i < uverbs_list_fault_count(list); i++)
        fprintf(stderr, "%s\n", uverbs_error_message(uverbs_list_fault(list, i)));
    uverbs_list_unref(list);
    uverbs_registry_unref(registry);
    return EXIT_SUCCESS;
}
