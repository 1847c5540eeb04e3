/* For counted.py: says to callgrind what to count, and is a packet function. */

#include <stdint.h>
#include <string.h>
#include <valgrind/callgrind.h>

void start(void) { CALLGRIND_START_INSTRUMENTATION; }

/* What this thread does is counted from here on, or no longer. */
void toggle(void) { CALLGRIND_TOGGLE_COLLECT; }

/* Writes what was counted under this name, and starts at zero. */
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }

int on_valgrind(void) { return RUNNING_ON_VALGRIND; }

/* Exchanges the two addresses of each frame, as the Rust loops do. */
void swap_addresses(uint8_t **packets, uint32_t *lengths, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint8_t both[12];
        if (lengths[i] < sizeof both)
            continue;
        memcpy(both, packets[i], sizeof both);
        memcpy(packets[i], both + 6, 6);
        memcpy(packets[i] + 6, both, 6);
    }
}
