"""The generated Python of the vectorshard contract. `vectorshard.v1` is the public one."""
