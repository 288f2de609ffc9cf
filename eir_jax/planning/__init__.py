"""What the compilers say of a run, before there is a device."""
