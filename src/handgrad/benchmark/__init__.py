"""``handgrad bench``: steps of this library and of others, timed in turns, every sample kept.

::

    workloads   what is timed: networks, batches, epochs, sweeps
    runners     one module a library: the same step, written as that library's users write it
    session     what a process answers: prepare, check, warm up, take a sample, ceilings
    process     a process for each library on each device
    measure     turns, rounds, and the record of what was measured
    report      the JSON document; table, pictures, page, comparison read it and nothing else
"""
