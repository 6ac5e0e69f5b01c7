"""Which model answers? One `Provider` per way to reach one."""
