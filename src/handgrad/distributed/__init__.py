"""Data-parallel training: the same bits on any number of ranks.

A batch is cut into a fixed number of *shards*, whatever the number of ranks.  Each rank (a process that MPI
started) takes a stretch of consecutive shards, and the gradients of all shards are summed in a fixed binary
tree.  So the numbers of a step depend on the number of shards alone.

=============  =============================================================================
``shards``     how a batch is cut, the tree, and who adds what
``steps``      steps over shards, in place of ``MLP.train_epoch``
``ranks``      the processes: one alone, or those of ``mpiexec`` and ``srun``
``exchange``   partial sums between the ranks: host buffers through MPI, GPU buffers through NCCL
``agreement``  ranks that differ in version, options, data or weights refuse to start
=============  =============================================================================

``import handgrad`` needs no MPI; mpi4py is imported where a launcher has started more than one rank.
"""
