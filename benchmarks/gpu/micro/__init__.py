"""Costs of barriers, messages, memory and arithmetic on a GPU: ``python -m benchmarks.gpu.micro``.

The kernels of whole sequences spend a step on three things: the product, the exchange of the state, and the barrier
that orders it. Each number here decides a choice between implementations of one of them; ``MEASUREMENTS`` says which.
``exchange.h`` and ``cluster.h`` run on the host shim too, ``throughput.h`` only on a GPU; ``micro.cu`` is the program
that launches and checks them, with the help of ``harness.h``.
"""

# By name: the meaning of one value, and its use in tuning.
MEASUREMENTS = {
    "counter_barrier": (
        "a barrier of all blocks at one counter, as the recurrent kernels have it, in µs",
        "the floor of a phase that spans several blocks, and how it grows with them: sets how many blocks a team takes",
    ),
    "flag_barrier": (
        "a barrier where each block raises its own flag and polls all others, in µs",
        "replaces the counter where it is faster: arrivals do not queue at one address, but there is more to poll",
    ),
    "grid_sync": (
        "a barrier by cooperative groups, in µs",
        "what the counter must beat; a counter that loses to it is badly placed or badly polled",
    ),
    "cluster_barrier": (
        "a barrier of a cluster in hardware that orders memory, in µs, of one cluster alone or everywhere at once",
        "the floor of a phase within a cluster: if it is far under the counter's, small teams belong in clusters",
    ),
    "cluster_barrier_relaxed": (
        "the same without ordering memory, in µs",
        "the difference is the price of the fence: what messages that carry their own order can save",
    ),
    "tagged_message": (
        "16 bytes that carry data and tag from one block to another through L2, one way, in µs",
        "the floor of any exchange between clusters: tagged messages replace store, barrier and load where faster",
    ),
    "flagged_message": (
        "the same as data, then a released flag, in µs",
        "the difference to the tagged message is what a separate flag costs",
    ),
    "cluster_push": (
        "16 bytes pushed into another block's shared memory, counted by its barrier there, one way, in µs",
        "the floor of an exchange within a cluster, to be held against the cluster barrier; a wait in cluster scope "
        "also empties the first-level cache, which messages do not need",
    ),
    "cluster_load": (
        "a load from a block's shared memory within a cluster, in cycles; rank 0 is the block's own",
        "whether states can be read where they were made, or must be copied before the product",
    ),
    "tile_exchange": (
        "a state of so many bytes stored in shares, a barrier, and the whole of it loaded by every block, in µs",
        "a step without its product: sets the batch tile, and what is gained by exchanging 16-bit states",
    ),
    "cluster_exchange": (
        "a state of so many bytes pushed in shares into every block of a cluster, and read there, in µs",
        "the same within a cluster and without a barrier: up to which state clusters beat L2",
    ),
    "shared_scan": (
        "bytes of shared memory that a multiprocessor reads in a clock",
        "the time of a step whose weights lie in shared memory: what is gained by keeping them in registers",
    ),
    "matrix_latency": (
        "cycles between two dependent mma.m16n8k16",
        "how many independent products a warp needs; the end of every chain over the depth",
    ),
    "matrix_rate": (
        "mma.m16n8k16 of a multiprocessor in a clock, by warps",
        "how many warps a product in bfloat16 needs, and its floor",
    ),
    "matrix_load": (
        "bytes that ldmatrix brings a multiprocessor in a clock, by warps",
        "whether operands from shared memory can keep up with the matrix instructions",
    ),
    "matrix_shared_rate": (
        "mma.m16n8k16 in a clock where every two need an ldmatrix, weights in registers, by warps",
        "what the bfloat16 product of the recurrent kernels can reach: far under matrix_rate, a load must feed more",
    ),
    "multiply_add_rate": (
        "multiply-adds of a multiprocessor in a clock, operands in registers",
        "the floor of a product in float32",
    ),
    "multiply_add_shared_rate": (
        "the same with the states of eight sequences from shared memory, by outputs that a lane has weights for",
        "what the float32 product of the recurrent kernels can reach (two outputs), and what more outputs would give",
    ),
}
