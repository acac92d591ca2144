"""The threads of numpy's products: none of their own.

OpenBLAS shares a product out among threads of its own, which then spin for some 25 ms, in case
there is another one. Searches are threads already, and what spins takes their cores: beside a bulk
load it adds a third to their p99.
"""

from __future__ import annotations

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no stubs


def use_one_thread() -> None:
    """Let each product be computed by the thread that asks for it.

    Of the whole process; FAISS brings another BLAS along, which goes by `ivf_index.use_cores`.
    """
    ThreadpoolController().select(internal_api="openblas", threading_layer="pthreads").limit(
        limits=1
    )
