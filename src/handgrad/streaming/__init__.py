"""Data larger than memory: read in blocks by a thread that runs ahead of the training.

``open_stream(spec)`` gives the training and test part of

==========================  ==============================================================================
``X.npy,y.npy``             and perhaps ``,X_test.npy,y_test.npy``; C order
a directory of IDX files    MNIST's four, not gzipped
a directory of shards       with ``index.json``; see :mod:`handgrad.streaming.shard_files`
==========================  ==============================================================================

Only blocks of ``block_rows`` rows are ever held: two that are trained on or filled, and the one that is read.
Of an epoch, the blocks come in a shuffled order and the rows of each are shuffled within it
(:mod:`handgrad.streaming.order`); one block that covers the set gives the order, and so the bits, of a
training in memory.
"""

from handgrad.streaming.order import block_order, streamed_order
from handgrad.streaming.shard_files import write_shards
from handgrad.streaming.stream import Stream, open_stream

__all__ = ["Stream", "block_order", "open_stream", "streamed_order", "write_shards"]
