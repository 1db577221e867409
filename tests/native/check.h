/* SPDX-License-Identifier: Apache-2.0
 *
 * As much of a test framework as these tests need: TEST(name) { ... } is a test, `PROGRAM --list` names
 * them, `PROGRAM NAME` runs one. The first check that fails ends the program with status 1.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test {
	const char *name;
	void (*run)(void);
	struct test *next;
};

static struct test *all_tests;

#define TEST(name_)                                                                                    \
	static void name_(void);                                                                       \
	static void __attribute__((constructor)) register_##name_(void)                                \
	{                                                                                              \
		static struct test test = { .name = #name_, .run = name_ };                            \
		test.next = all_tests;                                                                 \
		all_tests = &test;                                                                     \
	}                                                                                              \
	static void name_(void)

#define CHECK(condition)                                                                               \
	do {                                                                                           \
		if (!(condition)) {                                                                    \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);        \
			exit(1);                                                                       \
		}                                                                                      \
	} while (0)

#define EQUAL(got, wanted)                                                                             \
	do {                                                                                           \
		long long got_ = (long long)(got), wanted_ = (long long)(wanted);                      \
		if (got_ != wanted_) {                                                                 \
			fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got,     \
				got_, wanted_);                                                        \
			exit(1);                                                                       \
		}                                                                                      \
	} while (0)

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

int main(int argc, char **argv)
{
	int ran = 0;

	for (struct test *test = all_tests; test; test = test->next) {
		if (argc == 2 && !strcmp(argv[1], "--list")) {
			puts(test->name);
		} else if (argc == 1 || !strcmp(argv[1], test->name)) {
			test->run();
			ran++;
		} else {
			continue;
		}
	}
	return ran || (argc == 2 && !strcmp(argv[1], "--list")) ? 0 : 2;
}

#endif
