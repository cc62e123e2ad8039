// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Two threads that list devices at the same time, choose one by its name and open it, again and again.
 *
 * Usage: threads NAME
 * It prints "ready", runs until its standard input ends, and prints a line for each open:
 *   BEGIN END opened GUID
 *   BEGIN END refused ERRNO
 * The device was chosen between BEGIN and END, in nanoseconds of CLOCK_MONOTONIC. Where no device has the name, or the
 * device is gone before it is queried, nothing is printed.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

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

static const char *name;
static atomic_int stop;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * UINT64_C(1000000000) + time.tv_nsec;
}

static void choose_and_open(void)
{
	uint64_t begin = now(), end;
	struct ibv_device **list = ibv_get_device_list(NULL), **device;
	struct ibv_context *context;
	struct attr attr;

	if (!list)
		return;
	for (device = list; *device; device++)
		if (!strcmp(ibv_get_device_name(*device), name))
			break;
	end = now();
	if (*device) {
		errno = 0;
		context = ibv_open_device(*device);
		if (!context) {
			printf("%" PRIu64 " %" PRIu64 " refused %d\n", begin, end, errno);
		} else {
			memset(&attr, 0, sizeof(attr));
			if (!ibv_query_device(context, &attr))
				printf("%" PRIu64 " %" PRIu64 " opened %016" PRIx64 "\n", begin, end,
				       be64toh(attr.node_guid));
			ibv_close_device(context);
		}
	}
	ibv_free_device_list(list);
}

static void *run(void *unused)
{
	while (!stop)
		choose_and_open();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	int number;

	if (argc != 2)
		return 2;
	name = argv[1];
	puts("ready");
	fflush(stdout);
	for (number = 0; number < 2; number++)
		if (pthread_create(&threads[number], NULL, run, NULL))
			return 1;
	while (getchar() != EOF)
		;
	stop = 1;
	for (number = 0; number < 2; number++)
		pthread_join(threads[number], NULL);
	return 0;
}
