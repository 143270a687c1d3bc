"""How memory is allocated in the processes of an extraction: variables that libraries read when they are loaded."""

ARROW_POOL = ("ARROW_DEFAULT_MEMORY_POOL", "system")
"""Arrow's allocator: the system's, in the command and its workers.

Arrow's default keeps several times of what is ever in use at once where pieces of many sizes come and go, as in a
listing; the system's gives it back. Whoever reads vectors only is faster with the default, which keeps its pages.
"""

PILLOW_BLOCKS = {"PILLOW_BLOCK_SIZE": "512m", "PILLOW_BLOCKS_MAX": "8"}
"""Pillow's allocator, in workers: an image is one block, and up to so many blocks are used again for the next images.

Pillow's default returns an image's memory to the system, which has to clear it for the next one: a third of the time
that it takes to decode a photograph of 12 megapixels. The price: a worker keeps what the largest images took that it
had at the same time.
"""
