"""Disable the threads of numpy's matrix products.

OpenBLAS divides a product among a thread pool, whose threads then spin for about 25 ms waiting for
more work. Searches already run in threads, and the spinning takes their cores: during a bulk load
it adds a third to their p99.
"""

from __future__ import annotations

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no stubs


def use_one_thread() -> None:
    """Compute each product in the thread that requests it, in the whole process.

    FAISS includes another BLAS, which follows `ivf_index.use_cores`.
    """
    ThreadpoolController().select(internal_api="openblas", threading_layer="pthreads").limit(
        limits=1
    )
