// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A program on libibverbs. It lists devices, waits for a line on its standard input, and opens the device of that name
 * by the handle that it listed before.
 *
 * It is built once for each way in which programs reach libibverbs:
 *   linked      the functions are called by their names: through the PLT, or, with -fno-plt, through the GOT
 *   -DDYNAMIC   they are looked up at run time: dlsym, dlvsym, by default, or in a plugin that is linked
 *   -DPLUGIN    that plugin
 *   -DSTATIC    a program without libibverbs, into which nothing can be preloaded
 *
 * Usage: caller NAME [ROUNDS], or with -DDYNAMIC: caller HOW LIBRARY NAME [ROUNDS]
 * It prints "ready", and for each line that it reads, "opened GUID" or "refused ERRNO". "list" lists again first;
 * "free" frees the list before it opens, as DPDK and pyverbs do, and lists again after that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ibv_device;
struct ibv_context;

/* struct ibv_device_attr, as far as its GUID; the rest is room. */
struct attr {
	char fw_ver[64];
	uint64_t node_guid;
	char rest[512];
};

struct ibv_device **ibv_get_device_list(int *count);
void ibv_free_device_list(struct ibv_device **list);
const char *ibv_get_device_name(struct ibv_device *device);
struct ibv_context *ibv_open_device(struct ibv_device *device);
int ibv_close_device(struct ibv_context *context);
int ibv_query_device(struct ibv_context *context, struct attr *attr);

#ifdef STATIC
int main(void)
{
	return 0;
}
#else

#ifdef DYNAMIC
static struct {
	__typeof__(ibv_get_device_list) *ibv_get_device_list;
	__typeof__(ibv_free_device_list) *ibv_free_device_list;
	__typeof__(ibv_get_device_name) *ibv_get_device_name;
	__typeof__(ibv_open_device) *ibv_open_device;
	__typeof__(ibv_close_device) *ibv_close_device;
	__typeof__(ibv_query_device) *ibv_query_device;
} functions;
#define F(name) functions.name

static const char *how;
static void *library;

static void *find(const char *name)
{
	void *found = NULL;

	if (!strcmp(how, "dlvsym"))
		found = dlvsym(library, name, "IBVERBS_1.1");
	else if (!strcmp(how, "default"))
		found = dlsym(RTLD_DEFAULT, name);
	else
		found = dlsym(library, name);
	if (!found) {
		fprintf(stderr, "%s: %s\n", name, dlerror());
		exit(3);
	}
	return found;
}

static void load(const char *path)
{
	int flags = RTLD_NOW | RTLD_LOCAL;

	if (!strcmp(how, "deepbind"))
		flags |= RTLD_DEEPBIND;
	if (!strcmp(how, "default"))
		flags = RTLD_NOW | RTLD_GLOBAL;
	if (!strcmp(how, "plugin"))
		flags = RTLD_LAZY | RTLD_LOCAL;
	if (!strcmp(how, "dlmopen"))
		library = dlmopen(LM_ID_NEWLM, path, RTLD_NOW);
	else
		library = dlopen(path, flags);
	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		exit(3);
	}
}
#else
#define F(name) name
#endif

static int run(const char *name, int rounds)
{
	struct ibv_device **list = F(ibv_get_device_list)(NULL);
	struct attr attr;
	char line[64];

	if (!list) {
		printf("no list %d\n", errno);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	while (rounds-- && fgets(line, sizeof(line), stdin)) {
		struct ibv_device **device, *chosen;
		struct ibv_context *context;
		int is_freed, failed;

		if (!strcmp(line, "list\n")) {
			F(ibv_free_device_list)(list);
			list = F(ibv_get_device_list)(NULL);
			if (!list) {
				printf("no list %d\n", errno);
				return 1;
			}
		}
		for (device = list; *device; device++)
			if (!strcmp(F(ibv_get_device_name)(*device), name))
				break;
		chosen = *device;
		is_freed = !strcmp(line, "free\n");
		if (is_freed)
			F(ibv_free_device_list)(list);
		errno = 0;
		context = chosen ? F(ibv_open_device)(chosen) : NULL;
		failed = errno;
		/* Before the result is printed: the devices may change after that. */
		if (is_freed)
			list = F(ibv_get_device_list)(NULL);
		if (!list) {
			printf("no list %d\n", errno);
			return 1;
		}
		if (!chosen) {
			puts("absent");
		} else if (!context) {
			printf("refused %d\n", failed);
		} else {
			memset(&attr, 0, sizeof(attr));
			if (F(ibv_query_device)(context, &attr))
				puts("opened gone");
			else
				printf("opened %016" PRIx64 "\n", be64toh(attr.node_guid));
			F(ibv_close_device)(context);
		}
		fflush(stdout);
	}
	F(ibv_free_device_list)(list);
	return 0;
}

#ifdef PLUGIN
int plugin_run(const char *name, int rounds);
int plugin_run(const char *name, int rounds)
{
	return run(name, rounds);
}
#else
int main(int argc, char **argv)
{
#ifdef DYNAMIC
	if (argc < 4)
		return 2;
	how = argv[1];
	load(argv[2]);
	argc -= 2;
	argv += 2;
	if (!strcmp(how, "plugin")) {
		int (*plugin)(const char *, int);

		*(void **)&plugin = find("plugin_run");
		return plugin(argv[1], argc > 2 ? atoi(argv[2]) : 1);
	}
#define SET(name) *(void **)&functions.name = find(#name)
	SET(ibv_get_device_list);
	SET(ibv_free_device_list);
	SET(ibv_get_device_name);
	SET(ibv_open_device);
	SET(ibv_close_device);
	SET(ibv_query_device);
#endif
	if (argc < 2)
		return 2;
	return run(argv[1], argc > 2 ? atoi(argv[2]) : 1);
}
#endif
#endif
