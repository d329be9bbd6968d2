"""All that an atom computes between two looks at neighbours, as C++: a program of small steps.

The threads of an atom go through it together, so that a GPU starts one kernel where there would be
a dozen. A step is a body of ``native.py``, which the first warp does, or a product of the
atom's numbers with a matrix, which all threads share.
"""

from mlff_distiller.kernels.types import WARP

_PRODUCT = """
    const auto p = products.data[at];
    using in_t = const real*;
    const int width = p.width, rows = p.rows, groups = threads < width ? 1 : threads / width;
    const int group = thread / width < groups ? thread / width : groups;  // the last one rests
    const int splits = rows == 1 ? groups : 1, strides = rows == 1 ? 1 : groups;
    const int first_k = rows == 1 ? group * p.inner / groups : 0;
    const int last_k = rows == 1 ? (group + 1) * p.inner / groups : p.inner;
    const size_t r0 = (size_t)i * rows;
    in_t in = (in_t)p.inputs + r0 * p.input_stride, matrix = (in_t)p.matrix;
    in_t bias = (in_t)p.bias + r0 * p.bias_stride;
    real* out = (real*)p.out + r0 * p.out_stride;
    real* other = (real*)p.other + r0 * width;
    auto ends = [&](int r, int c, real value) {
        if (p.bias) value += bias[r * p.bias_stride + c];
        const size_t here = (size_t)r * width + c;
        if (p.way == 2) {
            const real x = other[here], f = real(1) / (real(1) + wp::exp(-x));
            value *= f * (real(1) + x * (real(1) - f));
        }
        out[r * p.out_stride + c] = value;
        if (p.way == 1) other[here] = value / (real(1) + wp::exp(-value));
    };
    auto some = [&](int r, int c, auto& sums) {
        constexpr int N = sizeof(sums) / sizeof(real);
        #if defined(__CUDA_ARCH__)
        #pragma unroll 8
        #endif
        for (int k = first_k; k < last_k; ++k) {
            const real w = matrix[k * width + c];
            for (int m = 0; m < N; ++m) sums[m] += w * in[(r + m * strides) * p.input_stride + k];
        }
        #if defined(__CUDA_ARCH__)
            if (splits > 1) {
                shares[thread] = sums[0];
                return;
            }
        #endif
        for (int m = 0; m < N; ++m) ends(r + m * strides, c, sums[m]);
    };
    const int first_r = rows == 1 ? 0 : group;
    if (group < groups)
        for (int c = thread - group * width; c < width; c += threads)
            for (int r = first_r; r < rows; r += 3 * strides) {
                real three[3] = {}, two[2] = {}, one[1] = {};
                if (r + 2 * strides < rows) some(r, c, three);
                else if (r + strides < rows) some(r, c, two);
                else some(r, c, one);
            }
    #if defined(__CUDA_ARCH__)
        if (splits > 1) {
            __syncthreads();
            if (thread < width) {
                real sum = 0;
                for (int k = 0; k < splits; ++k) sum += shares[k * width + thread];
                ends(0, thread, sum);
            }
        }
    #endif
"""


def chain(bodies: list[str], warps: int) -> str:
    """A code is the number of a body and that of its layer, or -1 and the number of a product."""
    # Steps read what others wrote. A pointer promised not to overlap with others would let a GPU
    # read through its cache of constants, which does not see that.
    own = (body.replace("__restrict__", "") for body in bodies)
    cases = "".join(
        f"case {k}: {{ const auto x = layers.data[at]; {body} }} break;\n"
        for k, body in enumerate(own)
    )
    return f"""
    #if defined(__CUDA_ARCH__)
        constexpr int threads = {WARP * warps};
        __shared__ real shares[threads];
    #else
        constexpr int thread = 0, threads = 1;
    #endif
    for (int step = 0; step < codes.shape[0]; ++step) {{
        const int kind = codes.data[step][0], at = codes.data[step][1];
        if (kind < 0) {{
            {_PRODUCT}
        }} else if (part == 0) {{
            switch (kind) {{
            {cases}
            }}
        }}
        #if defined(__CUDA_ARCH__)
            __syncthreads();
        #endif
    }}
    """
