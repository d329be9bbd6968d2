"""From gradients to weights in two launches: clipping, AdamW or Muon, and the moving average.

The specification is ``training.descent.Descent``, in PyTorch. Each matrix has a block of threads of
its own, on a CPU one thread. No atomics: results repeat bit for bit.
"""

from dataclasses import dataclass
from functools import cache

import warp as wp

from mlff_distiller.kernels.compiling import IN_VECTORS

BETAS = (0.9, 0.99)
EPSILON = 1e-8
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
SHARED_BYTES = 44 * 1024
"""48 KB is what a block has without asking; these hold a matrix, its transpose and a square."""
vec8i = wp.types.vector(8, wp.int32)


@dataclass(frozen=True)
class DescentKernels:
    """In the order of their use."""

    module: wp.Module
    addresses: type  # of all tensors
    tile: int  # to whose multiples rows and columns are padded in ``memory``
    chunks: int  # of the gradients, blocks of ``squares``
    threads: int  # of a block
    squares: wp.Kernel
    descend: wp.Kernel


@cache
def build(n: int, *, float64: bool, device: str) -> DescentKernels:
    """Kernels for ``n`` tensors on a "cpu" or a "cuda" device; compiled when first loaded.

    ``tensors`` are addresses: of all weights, all gradients, all first and all second moments, all
    numbers of steps (float32), all averages. A row of ``blocks`` is a matrix: its tensor, first
    element, rows, columns, whether it is turned, whether it decays, its group, where its part of
    ``memory`` starts: room for three padded matrices and two padded squares.
    """
    on_cpu = device == "cpu"
    tile, chunks, threads = (8, 1, 1) if on_cpu else (4, 16, 512)
    real = wp.float64 if float64 else wp.float32
    number = "double" if float64 else "float"
    addresses = wp.types.vector(6 * n, wp.uint64)
    module = wp.Module(f"mlff_distiller_descent_{n}_{number}_{device}", None)
    module.options.update(enable_backward=False, block_dim=threads, default_grid_stride=False)
    module.options["launch_bounds"] = (threads, 2)  # two blocks at once on a multiprocessor
    if on_cpu:
        module.options["cpu_compiler_flags"] = IN_VECTORS
    func, kernel = wp.func(module=module), wp.kernel(module=module)
    one, smallest = wp.constant(wp.float64(1.0)), wp.constant(wp.float64(1e-30))
    beta1, beta2 = (wp.constant(wp.float64(beta)) for beta in BETAS)
    new1, new2 = (wp.constant(real(1.0 - beta)) for beta in BETAS)
    linear, cubic, quintic = (wp.constant(real(factor)) for factor in NEWTON_SCHULZ)

    await_all = """
        #if defined(__CUDA_ARCH__)
            __syncthreads();
        #endif
    """

    @wp.func_native(await_all)
    def await_block(): ...

    @wp.func_native(
        f"""
        #if defined(__CUDA_ARCH__)
            __shared__ __align__(32) {number} room[{SHARED_BYTES} / sizeof({number})];
            if (size * sizeof({number}) <= {SHARED_BYTES})
                return wp::array_t<{number}>(room, size);
        #endif
            return wp::array_t<{number}>(memory.data + start, size);
        """
    )
    def room_of(memory: wp.array(dtype=real), start: int, size: int) -> wp.array(dtype=real):
        """Where a matrix is turned: a GPU's shared memory, or ``memory`` if it is too large."""
        ...

    @func
    def sum_of_block(value: wp.float64) -> wp.float64:
        return wp.tile_sum(wp.tile(value))[0]

    @wp.func_native(
        f"""
        constexpr int size = {tile};
        #if defined(__CUDA_ARCH__)
            typedef wp::vec_t<size, {number}> Sum;
            struct alignas(sizeof(Sum)) Row : Sum {{}};  // loaded at once
        #else
            typedef {number} Sum __attribute__((vector_size(size * sizeof({number}))));
            typedef Sum Row;
        #endif
        const int rows = sizes[0], columns = sizes[1], inner = sizes[2];
        const int n = columns / size;
        const bool symmetric = places[2] == places[3];
        const int n_tiles = symmetric ? n * (n + 1) / 2 : rows / size * n;
        for (int first = 0; first < n_tiles; first += {threads}) {{
            const int tile = first + thread;
            int i = tile / n, j = tile % n;
            if (symmetric) {{ // a row of the triangle's upper half, then one of its lower half
                i = tile / (n + 1), j = i + tile % (n + 1);
                if (j >= n)
                    j -= i + 1, i = n - 1 - i;
            }}
            i *= size, j *= size;
            const {number}* a = memory.data + places[0] + i;
            const {number}* b = memory.data + places[1] + j;
            Sum total[size] = {{}};
            if (tile < n_tiles) {{
        #if defined(__CUDA_ARCH__)
                #pragma unroll 4
        #endif
                for (int k = 0; k < inner; ++k) {{
                    const Row a_k = *(const Row*)(a + k * rows);
                    const Row b_k = *(const Row*)(b + k * columns);
                    for (int r = 0; r < size; ++r)
                        total[r] += b_k * a_k[r];
                }}
                for (int r = 0; r < size; ++r)
                    total[r] = total[r] * alpha + *(const Row*)(b + (i + r) * columns) * beta;
            }}
            {await_all} // the result may take the place of what others read
            if (tile < n_tiles) {{
                {number}* made = memory.data + places[2] + i * columns + j;
                {number}* transposed = memory.data + places[3] + j * rows + i;
                for (int r = 0; r < size; ++r) {{
                    Row across, down;
                    for (int c = 0; c < size; ++c)
                        across[c] = total[r][c], down[c] = total[c][r];
                    *(Row*)(made + r * columns) = across;
                    *(Row*)(transposed + r * rows) = down;
                }}
            }}
        }}
        {await_all}
        """
    )
    def product(
        thread: int,
        memory: wp.array(dtype=real),
        sizes: wp.vec3i,  # of the result, and the columns of A
        places: wp.vec4i,  # of A's transpose, B, the result, and its transpose
        alpha: real,
        beta: real,
    ):
        """(alpha A + beta) B, which is symmetric where it is its own transpose.

        It may take the place of A or B if `in_place`.
        """
        ...

    @func
    def in_place(p: int, q: int) -> bool:
        """Whether each tile of a matrix has a thread, which keeps it until all have read."""
        return p / tile * (q / tile) <= threads

    @func
    def padded(size: int) -> int:
        return (size + tile - 1) / tile * tile

    @func
    def place(e: int, n_columns: int, width: int, across: bool) -> int:
        """Where element e lies in a matrix of rows of ``width``, or in its transpose."""
        if across:
            return e % n_columns * width + e / n_columns
        return e / n_columns * width + e % n_columns

    @kernel
    def squares(
        first: int,
        tensors: addresses,
        sizes: wp.array(dtype=int),
        sums: wp.array(dtype=wp.float64),
    ):
        """Sums the squares of all gradients, and counts the step."""
        thread = first + wp.tid()
        total = wp.float64(0.0)
        for k in range(n):
            gradients = wp.array(ptr=tensors[n + k], shape=(sizes[k],), dtype=real)
            for e in range(thread, sizes[k], chunks * threads):
                total += wp.float64(gradients[e]) * wp.float64(gradients[e])
            if thread == 0:
                steps = wp.array(ptr=tensors[4 * n + k], shape=(1,), dtype=wp.float32)
                steps[0] = steps[0] + wp.float32(1.0)
        total = sum_of_block(total)
        if thread % threads == 0:
            sums[thread / threads] = total

    @func
    def orthogonal(
        thread: int, memory: wp.array(dtype=real), x: int, rows: int, columns: int
    ) -> int:
        """Where the wide matrix at ``x`` lies after X <- (a + b X X^T + c (X X^T)^2) X, repeated.

        Its transpose lies behind it.
        """
        p, q = padded(rows), padded(columns)
        transposed = x + p * q
        gram = transposed + p * q
        square, made = gram, x
        if not in_place(p, q):
            square = gram + p * p
            made = square + p * p
        iterations = int(ITERATIONS)  # a variable: Warp unrolls loops over constants
        for _ in range(iterations):
            places = wp.vec4i(transposed, transposed, gram, gram)
            product(thread, memory, wp.vec3i(p, p, columns), places, real(1.0), real(0.0))
            places = wp.vec4i(gram, gram, square, square)
            product(thread, memory, wp.vec3i(p, p, rows), places, quintic, cubic)
            places = wp.vec4i(square, x, made, transposed)
            product(thread, memory, wp.vec3i(p, q, rows), places, real(1.0), linear)
            before = x
            x = made
            made = before
        return x

    @kernel
    def descend(
        first: int,
        tensors: addresses,
        blocks: wp.array(dtype=vec8i),
        rates: wp.array(dtype=wp.float64),
        sums: wp.array(dtype=wp.float64),
        largest_norm: wp.float64,
        decay: wp.float64,
        average_decay: wp.float64,
        memory: wp.array(dtype=real),
    ):
        """Each matrix: AdamW's step, turned if it is to be, and the average's."""
        block = blocks[first + wp.tid() / threads]
        thread = wp.tid() % threads
        k, start, n_rows, n_columns, x = block[0], block[1], block[2], block[3], int(0)
        n_elements = n_rows * n_columns
        end = (start + n_elements,)
        weights = wp.array(ptr=tensors[k], shape=end, dtype=real)
        gradients = wp.array(ptr=tensors[n + k], shape=end, dtype=real)
        means = wp.array(ptr=tensors[2 * n + k], shape=end, dtype=real)
        variances = wp.array(ptr=tensors[3 * n + k], shape=end, dtype=real)
        steps = wp.array(ptr=tensors[4 * n + k], shape=(1,), dtype=wp.float32)
        averages = wp.array(ptr=tensors[5 * n + k], shape=end, dtype=real)
        total = wp.float64(0.0)
        for chunk in range(chunks):
            total += sums[chunk]
        clip = largest_norm / (wp.sqrt(total) + wp.float64(1e-6))
        if clip > one:  # which a NaN is not
            clip = one
        number, rate = wp.float64(steps[0]), rates[block[6]]
        length = real(rate / (one - wp.pow(beta1, number)))
        root = real(wp.sqrt(one - wp.pow(beta2, number)))
        kept = real(one - rate * decay * wp.float64(block[5]))
        renewed = real(one - average_decay)

        turned, tall = block[4] != 0, n_rows > n_columns
        rows, columns = wp.min(n_rows, n_columns), wp.max(n_rows, n_columns)
        p, q = padded(rows), padded(columns)
        size = int(0)
        if turned:
            size = p * (2 * q + p)
            if not in_place(p, q):
                size += p * (q + p)
        room = room_of(memory, block[7], size)
        for e in range(thread, size, threads):  # as the padding has to be
            room[e] = real(0.0)
        await_block()
        square = wp.float64(0.0)
        for e in range(thread, n_elements, threads):
            at = start + e
            gradient = real(clip) * gradients[at]
            mean = means[at] + new1 * (gradient - means[at])
            variance = real(beta2) * variances[at] + new2 * gradient * gradient
            means[at] = mean
            variances[at] = variance
            step = -length * mean / (wp.sqrt(variance) / root + real(EPSILON))
            if turned:
                room[x + place(e, n_columns, q, tall)] = step
                square += wp.float64(step) * wp.float64(step)
            else:
                weight = kept * weights[at] + step
                weights[at] = weight
                averages[at] = averages[at] + renewed * (weight - averages[at])
        if not turned:
            return

        norm = wp.sqrt(sum_of_block(square))
        scale = real(one / wp.max(norm, smallest))
        for e in range(thread, n_elements, threads):
            step = scale * room[x + place(e, n_columns, q, tall)]
            room[x + place(e, n_columns, q, tall)] = step
            room[x + p * q + place(e, n_columns, p, not tall)] = step
        await_block()
        x = orthogonal(thread, room, x, rows, columns)
        square = wp.float64(0.0)
        for e in range(thread, n_elements, threads):
            step = room[x + place(e, n_columns, q, tall)]
            square += wp.float64(step) * wp.float64(step)
        scale = real(norm / wp.max(wp.sqrt(sum_of_block(square)), smallest))
        for e in range(thread, n_elements, threads):
            at = start + e
            weight = kept * weights[at] + scale * room[x + place(e, n_columns, q, tall)]
            weights[at] = weight
            averages[at] = averages[at] + renewed * (weight - averages[at])

    return DescentKernels(module, addresses, tile, chunks, threads, squares, descend)
