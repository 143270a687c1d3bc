"""Which allocator Arrow uses in the processes of an extraction: the command's and its workers'."""

ARROW_POOL = ("ARROW_DEFAULT_MEMORY_POOL", "system")
"""An environment variable that Arrow reads when it is loaded, and the system's allocator as its value.

Arrow's default keeps several times of what is ever in use at once where pieces of many sizes come and go, as in a
listing; the system's gives it back. Whoever reads vectors only is faster with the default, which keeps its pages.
"""
