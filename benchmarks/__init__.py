"""Measurements against peers, side by side in one process.

    python -m benchmarks optimizers            # every tree; writes benchmarks/results/optimizers-<device>.json
    python -m benchmarks optimizers --quick    # a few minutes; prints, and writes only where --output says
    python -m benchmarks optimizers --trees transformer --cases clip_adamw --repeats 100
    python -m benchmarks norms                 # forward and backward passes; benchmarks/results/norms-<device>.json
    python -m benchmarks memory                # optimizer state in fewer bits; benchmarks/results/memory-<device>.json
    python -m benchmarks compiled              # what the compilers for TPU and GPU make of all that, without a device
    python -m benchmarks optimizers --help

It needs the ``bench`` extra; a peer that is not installed is left out, and the output says so.

How it measures: the peers take turns, one step each a round, in an order that changes, so that a slow spell of the
machine meets all of them. Every array that a step replaces is donated. A time is the median of the rounds with its
spread (the distance between the quartiles over the median), and a ratio is the median of the ratios within a round.
Building (trace, lowering, compilation) is measured the same way, each time after ``jax.clear_caches()``. Run it on a
quiet machine: the record holds how many cores other processes kept busy, a warning is printed where they did, and
``--patience`` waits for them and repeats what they disturbed. No target is judged on disturbed figures.

The allocator matters where arrays are larger than 32 MiB: glibc maps such an array afresh at every call, and the page
faults are charged to whoever allocates (XLA without donation, optax's clipped copy of the gradient). To see a run
without that, put ``MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184`` before the command; the
record keeps these variables.

A suite is a module with ``HELP``, ``add_arguments(parser)`` and ``run(args)``, listed in ``benchmarks.__main__``. With
``VARIABLES``, the command starts anew under those environment variables that are not set: ``norms``, whose passes can
donate nothing, has glibc keep the memory it once got. ``compiled`` measures nothing and has options of its own.
"""
