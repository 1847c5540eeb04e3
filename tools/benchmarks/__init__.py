"""Benchmarks of virtnic and its alternatives.

``python -m benchmarks --help``, from ``tests`` (or ``make bench``). ``docs/benchmarks.md``
says what each figure is and how it is taken. Each module measures one subject and has a
``run(bench)``; ``bench`` is what they share: options, cores, the report.
"""
