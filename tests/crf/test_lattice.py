"""The permutohedral lattice: its geometry, its table, the filter against the exact one and against pydensecrf."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseg
from tinyseg import crf
from tinyseg.crf.filters import NORMALISATIONS
from tinyseg.crf.lattice.simplex import Simplices, find_simplices, packing
from tinyseg.crf.lattice.table import build_table


@st.composite
def clouds(draw, dtype=np.float32):
    """Features (N, d) of some points, spread over many cells, one cell or a grid."""
    count, d = draw(st.integers(1, 200)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    features = rng.standard_normal((count, d)) * draw(st.sampled_from([0.01, 1, 5])) + draw(
        st.sampled_from([0, -30])
    )
    if draw(st.booleans()):
        features = np.round(features * 2) / 2  # many points on the borders of cells
    return features.astype(dtype)


# ------------------------------------------------------------------------------------------------------ geometry


def test_one_dimension_by_hand(backend):
    # d = 1: c = f sqrt(2/3) 2 / sqrt(2), e = (c, -c); cells are intervals of length 1 in c between the points
    # x = (m, -m), n = (x_1 - x_0) / 2 = -m. With c = 0.3 between m = 0 and m = 1, the weights are 0.7 and 0.3.
    features = np.array([[0.3], [1.2], [-0.25]]) / (np.sqrt(2 / 3) * 2 / np.sqrt(2))
    pack = packing(features)
    codes, weights = find_simplices(features, pack)
    n = codes // pack.steps[0]
    got = [dict(zip(n[i].tolist(), weights[i].round(12).tolist(), strict=True)) for i in range(3)]
    assert got == [{0: 0.7, -1: 0.3}, {-1: 0.8, -2: 0.2}, {0: 0.75, 1: 0.25}]


@given(clouds(np.float64))
@settings(max_examples=60)
def test_weights_are_barycentric(features):
    count, d = features.shape
    pack = packing(features)
    codes, weights = find_simplices(features, pack)
    assert weights.shape == codes.shape == (count, d + 1)
    assert weights.min() > -1e-12
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    # The weighted mean of the corners is the point. Seen through a code, which is a linear function of n:
    scaled = features * [np.sqrt(2 / 3) * (d + 1) / np.sqrt((k + 1) * (k + 2)) for k in range(d)]
    elevated = np.stack(
        [scaled[:, j:].sum(axis=1) - (j * scaled[:, j - 1] if j else 0) for j in range(d + 1)], axis=1
    )
    n = (elevated[:, d:] - elevated[:, :d]) / (d + 1)
    expected = n @ pack.steps[:d].astype(float)
    np.testing.assert_allclose(np.sum(weights * codes, axis=1), expected, rtol=1e-9, atol=1e-12 * 2.0**pack.bits)


@given(clouds())
@settings(max_examples=60)
def test_corners_are_one_step_apart(features):
    pack = packing(features)
    codes, _ = find_simplices(features, pack)
    taken = codes[:, 1:] - codes[:, :-1]
    for i in range(len(codes)):
        assert len(set(taken[i].tolist())) == taken.shape[1], "an axis is taken twice"
        assert set(taken[i].tolist()) <= set(pack.steps.tolist())
    assert codes.min() > pack.lowest
    assert int(codes.max()) - pack.lowest < 2**pack.bits


@given(clouds())
@settings(max_examples=60)
def test_geometry_of_both_backends_is_equal_to_the_last_bit(features):
    pack = packing(features)
    with tinyseg.use("numpy"):
        reference = find_simplices(features, pack)
    with tinyseg.use("numba"):
        ours = find_simplices(features, pack)
    np.testing.assert_array_equal(ours.codes, reference.codes)
    np.testing.assert_array_equal(ours.weights, reference.weights)


# --------------------------------------------------------------------------------------------------------- table


@given(clouds())
@settings(max_examples=60)
def test_table_of_both_backends_is_the_same(features):
    pack = packing(features)
    cells = find_simplices(features, pack)
    tables = []
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            tables.append(build_table(Simplices(cells.codes.copy(), cells.weights), pack))
    for field, reference, ours in zip(tables[0]._fields, *tables, strict=True):
        if isinstance(ours, list):
            assert [a.tolist() for a in ours] == [a.tolist() for a in reference], field
        else:
            np.testing.assert_array_equal(ours, reference, err_msg=field)


@pytest.mark.parametrize("spread", [1, 40, 1500])  # codes of 23, 37 and 62 bits
def test_table_of_both_backends_is_the_same_for_long_codes(spread, rng):
    near = rng.standard_normal((300, 5))
    features = np.concatenate([near, near[::2] + spread * rng.integers(-1, 2, (150, 5))]).astype(np.float32)
    pack = packing(features)
    assert (pack.bits > 32) == (spread > 30)
    cells = find_simplices(features, pack)
    with tinyseg.use("numpy"):
        reference = build_table(Simplices(cells.codes.copy(), cells.weights), pack)
    ours = build_table(cells, pack)
    np.testing.assert_array_equal(ours.vertex, reference.vertex)
    np.testing.assert_array_equal(ours.entry_point, reference.entry_point)


@given(clouds())
@settings(max_examples=60)
def test_table_says_who_shares_what(features):
    pack = packing(features)
    cells = find_simplices(features, pack)
    codes = cells.codes.copy()
    table = build_table(cells, pack)
    m = table.vertices
    code_of = np.zeros(m, np.int64)
    code_of[table.vertex] = codes
    assert (np.diff(code_of) > 0).all(), "a vertex for each code, in order"
    np.testing.assert_array_equal(code_of[table.vertex], codes)
    for v in range(m):
        entries = slice(table.first[v], table.first[v + 1])
        sharing, corner = np.nonzero(table.vertex == v)
        assert table.entry_point[entries].tolist() == sharing.tolist()
        assert table.entry_weight[entries].tolist() == cells.weights[sharing, corner].tolist()
    known = {int(code): v for v, code in enumerate(code_of)}
    for chain, pieces, step in zip(table.chains, table.pieces, pack.steps.tolist(), strict=True):
        links, before = set(), None
        for v in chain.tolist():
            if before is not None:
                links.add((before, max(v, ~v)))
            before = None if v < 0 else v
        assert links == {(v, known[code + step]) for code, v in known.items() if code + step in known}
        assert len({max(v, ~v) for v in chain.tolist()}) == len(chain), "a vertex is in one chain"
        assert (pieces[0], pieces[-1]) == (0, len(chain))
        assert all(cut == 0 or chain[cut - 1] < 0 for cut in pieces), "a chain is cut"


@pytest.mark.parametrize("d", [3, 4, 5])
def test_tasks_of_closed_blocks_share_no_vertex_along_any_axis(backend, d, rng, monkeypatch):
    monkeypatch.setattr("tinyseg.crf.lattice.table.BLOCK", 50)
    features = (rng.standard_normal((3000, d)) * 4).astype(np.float32)
    pack = packing(features)
    table = build_table(find_simplices(features, pack), pack)
    assert table.closed == 3
    tasks = len(table.pieces[3]) - 1
    assert tasks > 3
    end = 0
    for task in range(tasks):
        touched = [
            vertex
            for chain, pieces in zip(table.chains[3:], table.pieces[3:], strict=True)
            for vertex in np.maximum(chain, ~chain)[pieces[task] : pieces[task + 1]].tolist()
        ]
        assert min(touched, default=end) >= end
        end = max([end, *(vertex + 1 for vertex in touched)])


# -------------------------------------------------------------------------------------------------------- filter


def test_filter_by_hand(backend):
    # One point in one dimension, on a lattice point: a vertex of weight 1 and one of weight 0, its neighbour.
    # Splat gives (x, 0). Axis 0 makes of it (x, x/2), axis 1, the same neighbours, (x + x/4, x/2 + x/2).
    # Slice: 5/4 x, times alpha = 1 / (1 + 1/2).
    f = crf.LatticeFilter(np.zeros((1, 1)))
    np.testing.assert_allclose(f.apply(np.array([[3.0, -6.0]])), np.array([[3.0, -6.0]]) * 5 / 4 / 1.5, rtol=1e-15)


@given(clouds(), st.integers(1, 9))
@settings(max_examples=60)
def test_filter_of_both_backends(features, labels):
    x = np.random.default_rng(1).standard_normal((len(features), labels)).astype(np.float32)
    results = []
    for name in ("numpy", "numba"):
        with tinyseg.use(name):
            f = crf.LatticeFilter(features)
            results.append([f.apply(x), f.apply_transpose(x)])
    np.testing.assert_allclose(*results, rtol=0, atol=2e-6 * abs(results[0][0]).max())


def test_long_lists_are_cut_and_joined(rng):
    # 30000 points in one cell: each of its three vertices is shared by all of them, over many pieces of the splat.
    features = rng.uniform(0.1, 0.12, (30000, 2))
    x = rng.standard_normal((30000, 2))
    with tinyseg.use("numpy"):
        expected = crf.LatticeFilter(features).apply(x)
    with tinyseg.use("numba"):
        np.testing.assert_allclose(crf.LatticeFilter(features).apply(x), expected, rtol=1e-9, atol=1e-9)


def test_the_same_bits_on_any_number_of_threads(rng):
    numba = pytest.importorskip("numba")
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    x = rng.standard_normal((2000, 5)).astype(np.float32)
    results = []
    threads = numba.get_num_threads()
    for count in (1, threads, 1):
        numba.set_num_threads(count)
        results.append(crf.LatticeFilter(crf.bilateral_features(image, 20, 30)).apply(x).tobytes())
    numba.set_num_threads(threads)
    assert len(set(results)) == 1


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_gain_on_a_densely_sampled_space(d, rng):
    # Points so dense that every vertex has all its neighbours: the mass is the Gaussian's times a known gain.
    spacing = {1: 0.02, 2: 0.1, 3: 0.35, 5: 0.9}[d]
    side = {1: 2001, 2: 161, 3: 37, 5: 13}[d]
    axes = np.meshgrid(*[np.arange(side) * spacing] * d, indexing="ij")
    features = np.stack(axes, axis=-1).reshape(-1, d)
    features += rng.uniform(-spacing / 2, spacing / 2, features.shape)
    middle = np.argmin(np.sum((features - side * spacing / 2) ** 2, axis=1))
    mass = crf.LatticeFilter(features).apply(np.ones((len(features), 1)))[middle, 0] * spacing**d
    gain = 1.5 ** (d / 2) / np.sqrt(d + 1) * 2 ** (d + 1) / (1 + 2.0**-d) / (2 * np.pi) ** (d / 2)
    assert mass / (2 * np.pi) ** (d / 2) == pytest.approx(gain, rel=0.03 if d < 5 else 0.12)


@pytest.mark.parametrize(
    ("position", "colour", "tolerance"), [(3, None, 0.03), (80, 13, 0.03), (49, 5, 0.08), (67, 3, 0.08)]
)
@pytest.mark.parametrize("mode", ["symmetric", "after"])
def test_against_the_exact_filter(toy, mode, position, colour, tolerance, rng):
    image, probabilities = toy
    height, width, labels = probabilities.shape
    if colour is None:
        features = crf.position_features(height, width, position)
    else:
        features = crf.bilateral_features(image, position, colour)
    x = probabilities.reshape(-1, labels)
    lattice = crf.Normalised(crf.LatticeFilter(features), mode).apply(x)
    exact = crf.Normalised(crf.ExactFilter(features), mode).apply(x)
    assert np.linalg.norm(lattice - exact) < tolerance * np.linalg.norm(exact)


def test_asymmetry_is_small_and_float64_is_float32(rng):
    features = crf.position_features(24, 24, 3.0)
    x = rng.standard_normal((576, 3)).astype(np.float32)
    f = crf.LatticeFilter(features)
    y = f.apply(x)
    assert np.linalg.norm(y - f.apply_transpose(x)) < 0.05 * np.linalg.norm(y)
    np.testing.assert_allclose(f.apply(x.astype(np.float64)), y, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- pydensecrf


def filtered_by(package, features, x, mode):
    """One normalised filter of pydensecrf: the message of a model whose only kernel has the compatibility -1."""
    eigen = pytest.importorskip("pydensecrf.eigen", reason="a part of pydensecrf", exc_type=ImportError)
    count, labels = x.shape
    model = package.DenseCRF(count, labels)
    model.setUnaryEnergy(np.ascontiguousarray(-np.log(x.T)))
    model.addPairwiseEnergy(np.ascontiguousarray(features.T), -1.0, normalization=NORMALISATIONS.index(mode))
    q, _, _ = model.startInference()
    start = np.array(q).T.copy()
    message = eigen.matrixXf(np.zeros((labels, count), np.float32))
    model.stepInference(q, eigen.matrixXf(np.zeros((labels, count), np.float32)), message)
    return start, np.array(message).T


@pytest.mark.oracle
@pytest.mark.parametrize("mode", NORMALISATIONS)
@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 6])
def test_filter_against_pydensecrf(pydensecrf, backend, d, labels, mode):
    rng = np.random.default_rng(d)
    features = (rng.standard_normal((700, d)) * 2).astype(np.float32)
    x = rng.dirichlet(np.ones(labels), 700).astype(np.float32)
    start, expected = filtered_by(pydensecrf, features, np.maximum(x, 1e-6), mode)
    ours = crf.Normalised(crf.LatticeFilter(features), mode).apply(np.ascontiguousarray(start))
    assert np.linalg.norm(ours - expected) < 1e-5 * np.linalg.norm(expected)
    assert abs(ours - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.oracle
@pytest.mark.parametrize("bandwidth", [0.5, 1, 1.5, 2, 3, 3.3, 7, 30, 1000])
def test_grid_of_pixels_against_pydensecrf(pydensecrf, bandwidth):
    # Positions over a round bandwidth lie on the borders of cells, where the last bit decides.
    features = crf.position_features(50, 70, bandwidth)
    x = np.random.default_rng(0).dirichlet(np.ones(3), 3500).astype(np.float32)
    start, expected = filtered_by(pydensecrf, features, np.maximum(x, 1e-6), "symmetric")
    ours = crf.Normalised(crf.LatticeFilter(features)).apply(np.ascontiguousarray(start))
    assert abs(ours - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.oracle
@pytest.mark.parametrize(("position", "colour"), [(80, 13), (49, 5), (67, 3), (160, 3), (30, 1), (3, (2, 4, 8))])
def test_photograph_against_pydensecrf(pydensecrf, real_data, position, colour):
    from PIL import Image

    image = np.array(Image.open(real_data / "voc_sample" / "JPEGImages" / "2011_000025.jpg").convert("RGB"))
    features = crf.bilateral_features(image[40:140, 60:190], position, colour)
    x = np.random.default_rng(0).dirichlet(np.ones(3), len(features)).astype(np.float32)
    start, expected = filtered_by(pydensecrf, features, np.maximum(x, 1e-6), "symmetric")
    ours = crf.Normalised(crf.LatticeFilter(features)).apply(np.ascontiguousarray(start))
    assert abs(ours - expected).max() < 1e-5 * abs(expected).max()
