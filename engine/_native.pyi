"""Signatures of the compiled extension (csrc/bindings.cpp). Private to `engine`."""

def normal(
    seeds_ptr: int,
    draws_ptr: int,
    out_ptr: int,
    samples: int,
    elements: int,
    threads: int = 1,
    isa: str = "auto",
    first_quad: int = 0,
) -> None:
    """Write float32 normals `[samples, elements]` at address `out_ptr`, from element 4 * first_quad.

    `seeds_ptr` and `draws_ptr` are addresses of `samples` uint64 each. The bits depend on neither
    `threads` nor `isa` (`"auto"` or one of `normal_isas()`). The GIL is released.

    Raises:
        ValueError: a size, `first_quad`, `threads`, an address or `isa` is not usable.
    """

def normal_isas() -> list[str]:
    """Instruction sets that this build has and this processor runs, fastest first."""
