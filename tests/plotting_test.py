"""The figures show the data they were given, the theory where it belongs, and units on the axes."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import StepPatch

import experiment_figures
import geometry
import plotting
from page import CAPTIONS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def line(axis, label):
    """Points (x, y) of the one line of that label."""
    (found,) = [line for line in axis.lines if line.get_label().startswith(label)]
    return np.array(found.get_data(), dtype=float)


def vertical(axis, label):
    """Where the vertical line of that label stands."""
    x, _ = line(axis, label)
    assert x[0] == x[1]
    return x[0]


def histograms(axis):
    """(values, edges, baseline) of every histogram, in the order drawn."""
    return [patch.get_data() for patch in axis.patches if isinstance(patch, StepPatch)]


def area(values, edges):
    return np.sum(values * np.diff(edges))


def points(axis):
    """(x, y) of every set of markers without a line, error bars included."""
    return [
        np.array(line.get_data())
        for line in axis.lines
        if line.get_marker() in {".", *plotting.MARKERS} and line.get_linestyle() == "None"
    ]


def drawn(figure):
    """The figure's axes, after checking that it can be drawn and says what its axes are."""
    figure.canvas.draw()
    axes = [axis for axis in figure.axes if axis.axison]
    assert all(axis.get_xlabel() for axis in axes if axis.get_label() != "<colorbar>")
    assert axes[0].get_ylabel()
    return axes


def layer(rng, name="conv_1", fan_in=27, units=40, **changes):
    wc = rng.standard_normal((fan_in, units)) * 0.1
    wb = np.sign(wc)
    pairs = SimpleNamespace(
        extent=(-2.0, 2.0, -4.0, 4.0),
        histogram=np.arange(12).reshape(3, 4),
        r=0.912,
        slope=2.0,
        sign_changes=0.0834,
        unit_r=np.linspace(0.85, 0.95, units),
        inside_unit_r=np.linspace(0.85, 0.95, units),
    )
    values = {
        "name": name,
        "fan_in": fan_in,
        "convolutional": name.startswith("conv"),
        "first": name == "conv_1",
        "spread_ratio": 1.3,
        "wc": wc,
        "wb": wb,
        "angles": geometry.unit_angles(wc, wb),
        "tau": 0.0,
        "theory": geometry.angle_moments(fan_in),
        "weights_dot": pairs,
        "activations_dot": pairs,
        "permuted": pairs,
        "predicted_r": np.linspace(0.84, 0.94, units),
        "spectrum": np.linspace(2, 0, fan_in),
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def layers(rng):
    return [layer(rng), layer(rng, "conv_2", 288), layer(rng, "fc_1", 64, 10)]


# --- Theory -----------------------------------------------------------------------------------


def test_straight_through_draws_quantizer_ramp_and_gradient():
    x = np.linspace(-2, 2, 9)
    curves = {"one": (np.sign(x), np.abs(x) <= 1), "two": (0 * x, np.abs(x) <= 1)}
    axes = drawn(plotting.plot_straight_through(x, curves, np.clip(x, -1, 1)))
    assert [axis.get_title(loc="left") for axis in axes] == ["one", "two"]
    for axis, (forward, gradient) in zip(axes, curves.values(), strict=True):
        assert np.array_equal(line(axis, "forward")[1], forward)
        assert np.array_equal(line(axis, "gradient")[1], gradient)
        assert np.array_equal(line(axis, "clip")[1], np.clip(x, -1, 1))


def test_angle_samples_are_densities_in_degrees_under_the_closed_form(rng):
    samples = {d: geometry.random_pair_angles(d, 5_000, rng) for d in (3, 100)}
    axes = drawn(plotting.plot_angle_samples(samples, density=geometry.angle_density))
    for axis, (d, angles) in zip(axes, samples.items(), strict=True):
        ((values, edges, _),) = histograms(axis)
        assert area(values, edges) == pytest.approx(1)
        assert np.degrees([angles.min(), angles.max()]) == pytest.approx(edges[[0, -1]])
        x, y = line(axis, "theory")
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.01)
        assert y.max() == pytest.approx(values.max(), rel=0.2)
        assert axis.get_title(loc="left") == f"d = {d}"
        assert "degrees" in axis.get_xlabel()
    assert "1/degree" in axes[0].get_ylabel()


def test_angle_samples_carry_the_theory_s_mean_and_sd(rng):
    samples = {27: geometry.binarization_angles(27, 500, rng)}
    (axis,) = drawn(plotting.plot_angle_samples(samples, moments=geometry.angle_moments))
    assert vertical(axis, "theory: mean") == pytest.approx(36.19, abs=0.01)
    x, y = line(axis, "normal")
    assert x[np.argmax(y)] == pytest.approx(36.19, abs=0.1)
    assert y.max() == pytest.approx(1 / (3.83 * np.sqrt(2 * np.pi)), rel=0.01)


def test_angle_ranges_show_both_kinds_from_0_to_180_degrees(rng):
    own = {d: geometry.binarization_angles(d, 2_000, rng) for d in (3, 300)}
    other = {d: geometry.random_pair_angles(d, 2_000, rng) for d in (3, 300)}
    axes = drawn(plotting.plot_angle_ranges(own, other))
    for axis, d in zip(axes, own, strict=True):
        assert axis.get_xlim() == (0, 180)
        for (values, edges, _), angles in zip(histograms(axis), (own[d], other[d]), strict=True):
            assert area(values, edges) == pytest.approx(1)
            mean = np.sum(values * (edges[:-1] + 0.5) * np.diff(edges))
            assert mean == pytest.approx(np.degrees(angles.mean()), abs=0.3)
        assert vertical(axis, "d →") == pytest.approx(37.07, abs=0.01)
        x, y = line(axis, "theory")
        assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)


def test_spread_points_lie_on_the_theory_and_the_right_panel_is_flat_at_last(rng):
    samples = {d: geometry.binarization_angles(d, 3_000, rng) for d in (3, 30, 1000)}
    left, right = drawn(plotting.plot_spread(samples))
    assert "degrees" in left.get_ylabel() and "√d" in right.get_ylabel()
    for axis in (left, right):
        ((d, y),) = points(axis)
        assert np.array_equal(d, list(samples))
        x, theory = line(axis, "theory")
        assert y == pytest.approx(np.interp(d, x, theory), rel=0.05)
    assert points(left)[0][1] == pytest.approx([np.degrees(a.std()) for a in samples.values()])
    assert line(right, "20.18°")[1] == pytest.approx(20.18, abs=0.01)
    assert line(right, "theory")[1][-1] == pytest.approx(20.18, abs=0.02)


def test_shapes_mark_the_means_and_reach_every_kurtosis(rng):
    samples = {
        "uniform": (np.array([1.6, 1.7, 2.1]), np.radians([29, 29, 32])),
        "heavy": (np.array([19.0, 21.0]), np.radians([55, 57])),
    }
    (axis,) = drawn(plotting.plot_shapes(samples))
    assert np.ravel(points(axis)) == pytest.approx([1.8, 30, 20, 56])
    x, y = line(axis, "generalized")
    assert x[0] == pytest.approx(1.8) and x[-1] == pytest.approx(20)
    assert np.interp([3, 6], x, y) == pytest.approx([37.07, 45], abs=0.01)
    assert [text.get_text() for text in axis.texts] == ["uniform: 30.00°", "heavy: 56.00°"]


def test_rotated_draws_plain_and_rotated_in_degrees(rng):
    samples = {4: np.radians([np.full(50, 80.2), np.full(50, 37.6)])}
    (axis,) = drawn(plotting.plot_rotated(samples))
    plain, rotated = histograms(axis)
    for (values, edges, _), at in ((plain, 80.2), (rotated, 37.6)):
        assert area(values, edges) == pytest.approx(1)
        peak = np.argmax(values)
        assert edges[peak] <= at < edges[peak + 1]
    assert vertical(axis, "Gaussian") == pytest.approx(37.07, abs=0.01)
    legend = axis.figure.legends[0]
    assert [text.get_text() for text in legend.texts[:2]] == ["plain", "rotated"]


def test_ternary_samples_lie_on_curves_with_the_optimum_marked(rng):
    samples = {tau: geometry.ternarization_angle(tau, 50_000, rng) for tau in (0.0, 0.5, 1.5)}
    trained = {
        "one": np.array([(0.2, np.radians(31), 0.15), (0.3, np.radians(29), 0.24)]),
        "two": np.array([(0.0, np.radians(39.07), 0.0)]),
    }
    left, right, rows = drawn(plotting.plot_ternary(samples, trained))
    assert "degrees" in left.get_ylabel() and "%" in right.get_ylabel()
    for axis, close, values in ((left, 0.5, [31, 29, 39.07]), (right, 1, [15, 24, 0])):
        assert vertical(axis, "least angle") == pytest.approx(0.612, abs=1e-3)
        tau, y = line(axis, "Gaussian, sampled")
        x, theory = line(axis, "Gaussian, theory")
        assert x[-1] == 1.5
        assert y == pytest.approx(np.interp(tau, x, theory), abs=close)
        tau, y = line(axis, "layers of trained networks")
        assert tau == pytest.approx([0.2, 0.3, 0]) and y == pytest.approx(values)
    x, theory = line(left, "Gaussian, theory")
    assert x[np.argmin(theory)] == pytest.approx(0.612, abs=0.01)
    assert [label.get_text() for label in rows.get_yticklabels()] == ["one", "two"]
    (one, row_one), (two, row_two) = points(rows)
    assert one == pytest.approx([31, 29] - np.interp([0.2, 0.3], x, theory), abs=0.01)
    assert two == pytest.approx([2.0], abs=0.01)
    assert (row_one[0], row_two[0]) == (0, 1)
    assert "layers" not in str(plotting.plot_ternary(samples, {}).legends[0].get_texts())


def test_bits_keep_every_quantizer_above_the_limit():
    (axis,) = drawn(plotting.plot_bits([2, 3, 16]))
    x, limit = line(axis, "rate–distortion")
    bits, angles = line(axis, "Lloyd–Max")
    assert bits == pytest.approx([1, np.log2(3), 4])
    assert angles[:2] == pytest.approx([37.07, 25.85], abs=0.01)
    assert np.interp([1, 2], x, limit) == pytest.approx([30, 14.48], abs=0.05)
    assert np.all(angles > np.interp(bits, x, limit))
    assert axis.texts[1].get_text() == "3 levels: 25.9°"


# --- Trained layers ---------------------------------------------------------------------------


def test_layer_angles_put_each_layer_on_its_row_with_its_own_theory(layers):
    layers[1].angles[3] = np.nan
    zoomed, whole = drawn(plotting.plot_layer_angles(layers))
    names = [label.get_text() for label in zoomed.get_yticklabels()]
    assert names == ["fc_1, d = 64", "conv_2, d = 288", "conv_1, d = 27"]
    for axis in (zoomed, whole):
        assert vertical(axis, "binary Gaussian") == pytest.approx(37.07, abs=0.01)
        for row, (entry, (heights, edges, base)) in enumerate(
            zip(reversed(layers), histograms(axis), strict=True)
        ):
            assert base == row and row <= heights.min() and heights.max() < row + 1
            degrees = np.degrees(entry.angles[np.isfinite(entry.angles)])
            assert edges[[0, -1]] == pytest.approx([degrees.min(), degrees.max()])
        theory = [geometry.angle_moments(entry.fan_in)[0] for entry in reversed(layers)]
        centres = [float(x) for (x,), _ in points(axis)]
        assert centres == pytest.approx(np.degrees(theory))
    assert whole.get_xlim() == (0, 180)
    assert "degrees" in zoomed.get_xlabel()


def test_layer_angles_of_ternary_layers_meet_their_own_theory(rng):
    ternary = [layer(rng, theory=(0.5, np.nan)), layer(rng, "conv_2", 288, theory=(0.45, np.nan))]
    figure = plotting.plot_layer_angles(ternary)
    zoomed, _ = drawn(figure)
    centres = [float(x) for (x,), _ in points(zoomed)]
    assert centres == pytest.approx(np.degrees([0.45, 0.5]))
    assert not [entry for entry in zoomed.lines if entry.get_label().startswith("binary")]
    assert "±" not in figure.legends[0].get_texts()[0].get_text()


def errorbars(axis):
    """(x, y, half length of the bar) of every point with error bars."""
    for container in axis.containers:
        (x,), (y,) = container.lines[0].get_data()
        ((_, low), (_, high)) = container.lines[2][0].get_segments()[0]
        yield x, y, (high - low) / 2


def test_angle_scaling_draws_spreads_with_errors_and_the_fits(layers, rng):
    layers.append(layer(rng, "conv_3", 576))
    left, right = drawn(plotting.plot_angle_scaling(layers))
    for axis, values in (
        (left, [np.degrees(entry.angles.std()) for entry in layers]),
        (right, [entry.spread_ratio for entry in layers]),
    ):
        x, y, bars = np.transpose([*errorbars(axis)])
        assert y == pytest.approx(values)
        relative = [1 / np.sqrt(2 * len(entry.angles)) for entry in layers]
        assert bars == pytest.approx(np.multiply(values, relative))
        assert list(x) == ([entry.fan_in for entry in layers] if axis is left else [0, 1, 2, 3])
    x, theory = line(left, "Gaussian")
    assert np.interp(27, x, theory) == pytest.approx(3.83, abs=0.02)
    for label, kept in (("fit, all conv", (0, 1, 3)), ("fit, without conv_1", (1, 3))):
        points = np.array([(layers[i].fan_in, np.degrees(layers[i].angles.std())) for i in kept])
        slope, start = np.polyfit(*np.log(points.T), 1)
        x, y = line(left, label)
        assert np.log(y) == pytest.approx(slope * np.log(x) + start)
        text = next(h.get_label() for h in left.lines if h.get_label().startswith(label))
        assert f"{slope:.2f}".replace("-", "−") in text


@pytest.mark.parametrize("kept", [0, 1])
def test_angle_scaling_leaves_out_layers_of_one_unit(layers, kept):
    for entry in layers[kept:]:
        entry.angles = entry.angles[:1]
    left, right = drawn(plotting.plot_angle_scaling(layers))
    assert len([*errorbars(left)]) == len([*errorbars(right)]) == kept


@pytest.mark.parametrize("which", ["weights_dot", "activations_dot", "permuted"])
def test_dot_products_are_drawn_the_right_way_round(layers, which):
    layers[0].activations_dot = None
    *axes, bar = drawn(plotting.plot_dot_products(layers, which))
    expected = [entry for entry in layers if getattr(entry, which) is not None]
    titles = [axis.get_title(loc="left").split("\n") for axis in axes]
    assert titles == [
        [f"{entry.name}: r = 0.912, slope 2.00", "sign changes 8.3%"] for entry in expected
    ]
    (image,) = axes[0].images
    before, after = {
        "weights_dot": ("A·w$^c$", "A·w$^b$"),
        "activations_dot": ("A$^c$·w$^b$", "A$^b$·w$^b$"),
        "permuted": ("permuted A·w$^c$", "permuted A·w$^b$"),
    }[which]
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == (before, after)
    # x runs along the histogram's first axis; row 0 of the image is the lowest y.
    shares = np.arange(12).reshape(3, 4).T / 66
    assert image.get_array().filled(0) == pytest.approx(shares)
    assert image.origin == "lower" and tuple(image.get_extent()) == (-2, 2, -4, 4)
    assert "share" in bar.get_ylabel()
    assert bar.get_ylim() == pytest.approx((1 / 66, 11 / 66))
    # The regression goes through the means of x and y.
    x, y = max((entry.get_data() for entry in axes[0].lines), key=lambda data: np.ptp(data[1]))
    assert np.ptp(y) / np.ptp(x) == pytest.approx(2)
    mean_x = np.average([-4 / 3, 0, 4 / 3], weights=[6, 22, 38])
    mean_y = np.average([-3, -1, 1, 3], weights=[12, 15, 18, 21])
    assert np.interp(mean_x, x, y) == pytest.approx(mean_y)


def test_dot_products_are_drawn_as_far_as_they_reach(layers):
    histogram = np.zeros((4, 4), int)
    histogram[2, 2] = histogram[3, 3] = histogram[2, 1] = 5
    for entry in layers:
        vars(entry.weights_dot).update(histogram=histogram)
    axis = plotting.plot_dot_products(layers, "weights_dot").axes[0]
    assert axis.get_xlim() == (0, 2) and axis.get_ylim() == (-2, 4)


def test_dot_products_shade_where_signs_change(layers):
    axis = plotting.plot_dot_products(layers, "weights_dot").axes[0]
    for patch in axis.patches:
        (x0, y0), (x1, y1) = patch.get_bbox().get_points()
        assert (x0 + x1) * (y0 + y1) < 0
    assert len(axis.patches) == 2


def test_weights_stand_beside_a_gaussian_of_their_own_spread(layers):
    layers[0].wc[:14] = 1
    axes = drawn(plotting.plot_weights(layers))
    share = np.mean(layers[0].wc == 1)
    assert f"{share:.2%} at ±1" in axes[0].get_title(loc="left")
    for axis, entry in zip(axes, layers, strict=True):
        ((values, edges, _),) = histograms(axis)
        assert area(values, edges) == pytest.approx(1)
        assert edges[-1] == pytest.approx(np.abs(entry.wc).max())
        _, y = line(axis, "Gaussian")
        assert y.max() == pytest.approx(1 / (entry.wc.std() * np.sqrt(2 * np.pi)), rel=0.01)


def test_predicted_r_stands_against_measured_r(layers):
    layers[2].predicted_r = None
    axes = drawn(plotting.plot_predicted(layers))
    for axis in axes:
        assert [c.get_label() for c in axis.collections] == ["conv_1", "conv_2"]
        x, y = np.asarray(axis.collections[0].get_offsets()).T
        assert x == pytest.approx(layers[0].predicted_r)
        assert y == pytest.approx(layers[0].weights_dot.unit_r)
        x, y = line(axis, "prediction")
        assert np.array_equal(x, y)
    assert axes[1].get_xlim() == axes[1].get_ylim() == (0.8, 1)


def test_permutation_draws_means_over_units_and_the_cosine(layers):
    layers[0].permuted = SimpleNamespace(inside_unit_r=np.array([0.7, np.nan, 0.9]))
    figure = plotting.plot_permutation(layers)
    figure.canvas.draw()
    (axis,) = figure.axes
    as_is, permuted = (container.lines[0].get_ydata() for container in axis.containers)
    assert as_is == pytest.approx(0.9)
    assert permuted[0] == pytest.approx(0.8)
    _, cosine = line(axis, "cosine")
    assert cosine == pytest.approx(np.cos(layers[0].angles).mean())


def test_spectra_add_up_to_one(layers):
    layers[1].spectrum = None
    (axis,) = drawn(plotting.plot_spectra(layers))
    assert [entry.get_label() for entry in axis.lines] == ["conv_1, d = 27", "fc_1, d = 64"]
    for entry in axis.lines:
        shares = entry.get_ydata()
        assert shares[-1] == pytest.approx(1) and np.all(np.diff(shares) >= 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_stand_above_their_signs_in_the_order_of_r(rng, channels):
    wc = rng.standard_normal((3, 3, channels, 20)) * 0.1
    r = rng.permutation(np.linspace(-0.5, 0.9, 20))
    entry = SimpleNamespace(
        name="conv_1", wc=wc, wb=np.sign(wc), weights_dot=SimpleNamespace(unit_r=r)
    )
    figure = plotting.plot_filters(entry, count=18)
    figure.canvas.draw()
    images = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(images) == 36
    titles = [axis.get_title().replace("−", "-") for axis in figure.axes if axis.get_title()]
    shown = [float(title) for title in titles]
    assert len(shown) == 18 and shown == sorted(shown)
    assert (shown[0], shown[-1]) == (-0.5, 0.9)
    latent, binary = np.array(figure.axes).reshape(4, 16)[2:, 1]
    unit = np.argmax(r)
    expected = (wc[..., unit] / np.abs(wc[..., unit]).max() + 1) / 2
    assert np.allclose(latent.images[0].get_array(), np.squeeze(expected))
    assert set(np.unique(binary.images[0].get_array())) == {0, 1}


def test_lines_over_time_are_means_and_bands_ranges():
    values = np.array([[0.7, 0.8], [0.9, 1.0]])
    panels = {"state": {"binary": ([2, 3], values)}, "input": {"float": ([2, 3], values)}}
    figure = experiment_figures.plot_over_time(panels)
    figure.canvas.draw()
    for axis in figure.axes[:2]:
        (drawn_line,) = axis.lines
        np.testing.assert_allclose(drawn_line.get_xydata(), [[2, 0.8], [3, 0.9]])
        low, high = axis.collections[0].get_datalim(axis.transData).intervaly
        assert (low, high) == pytest.approx((0.7, 1.0))


def test_marks_are_runs_and_the_curve_is_the_cosine():
    runs = np.array([[30.0, 0.9, 0.78], [31.0, 0.92, 0.79]])
    figure = experiment_figures.plot_causes(
        {"a": runs, "b": runs + np.array([8, 0, 0])}, images=5000
    )
    figure.canvas.draw()
    left, right = figure.axes
    marks = left.containers[1].lines[0]
    np.testing.assert_allclose(marks.get_xydata(), [[38, 78], [39, 79]])
    (bar, _), *_ = left.containers[0].lines[2][0].get_segments()
    assert bar[1] == pytest.approx(78 - 100 * np.sqrt(0.78 * 0.22 / 5000))
    angle, cosine = right.lines[-1].get_xydata()[0]
    assert cosine == pytest.approx(np.cos(np.radians(angle)))


def test_lines_of_flips_are_means_over_seeds():
    arms = {"baseline": ([1, 2], [[0.3, 0.1], [0.5, 0.2]])}
    figure = experiment_figures.plot_flips(arms)
    figure.canvas.draw()
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[1, 40], [2, 15]])


def test_energy_bars_are_bytes_and_microjoules():
    row = {"network": "x", "bytes of weights": 2e6, "bytes of activations": 3e5, "µJ computing": 7}
    figure = experiment_figures.plot_energy([row, row])
    figure.canvas.draw()
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([2, 2, 0.3, 0.3])
    assert [bar.get_width() for bar in right.patches] == [7, 7]


def test_rotation_bars_are_the_correlations():
    values = {"weights": 0.61, "patches": 0.81, "both": -0.1}
    correlations = dict.fromkeys(("as is", "random", "pca", "zca"), values)
    figure = plotting.plot_rotation(correlations)
    figure.canvas.draw()
    (axis,) = figure.axes
    for container, height in zip(axis.containers, values.values(), strict=True):
        assert [bar.get_height() for bar in container] == pytest.approx([height] * 4)
    assert axis.get_ylim()[0] < -0.1
    assert line(axis, "uncorrelated")[1] == pytest.approx(np.sqrt(2 / np.pi))


def test_substitution_draws_percentages_and_their_sampling_error():
    accuracies = {"none": (0.7, 0.71), "conv_1": (0.1, 0.65)}
    left, right = drawn(plotting.plot_substitution(accuracies, 100))
    assert [bar.get_width() for bar in left.patches] == pytest.approx([70, 10])
    (container,) = right.containers
    assert container.lines[0].get_xdata() == pytest.approx([71, 65])
    (low, high) = container.lines[2][0].get_segments()[1][:, 0]
    assert (high - low) / 2 == pytest.approx(100 * np.sqrt(0.65 * 0.35 / 100))
    assert [text.get_text() for text in right.texts] == ["71.00%", "65.00%"]
    assert vertical(left, "as trained: 70.00%") == vertical(right, "as trained") == 70
    low, high = right.get_xlim()
    assert 50 < low < 65 and 71 < high < 90


HISTORY = [
    {"epochs": e, "layer": name, "angle": 30 + e + i, "r": 0.8 + 0.01 * e}
    for e in range(3)
    for i, name in enumerate(("conv_1", "fc_1"))
]


def test_angle_history_draws_a_line_a_layer():
    angle, high, whole = drawn(plotting.plot_angle_history(HISTORY))
    assert np.array_equal(line(angle, "fc_1"), [[0, 1, 2], [31, 32, 33]])
    for axis in (high, whole):
        assert line(axis, "conv_1")[1] == pytest.approx([0.8, 0.81, 0.82])
    assert high.get_ylim() == (0.85, 1)
    # The names of the dotted lines stand beside the axis, where no layer is drawn.
    assert [text.get_position()[0] > 1 for text in angle.texts] == [True, True]
    ternary = [{**row, "angle": row["angle"] - 10} for row in HISTORY]
    assert not drawn(plotting.plot_angle_history(ternary))[0].texts


def test_layers_never_share_a_style_within_forty_nor_a_colour_within_ten():
    for style in (plotting.layer_style, plotting._layer_marker):
        assert len({tuple(style(i).values()) for i in range(40)}) == 40
        assert len({style(i)["color"] for i in range(10)}) == 10


# --- Files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [[], HISTORY], ids=["without history", "with history"])
def test_run_figures_writes_both_formats_and_leaves_none_open(layers, history, tmp_path):
    before = plt.get_fignums()
    for entry in layers:
        entry.permuted = entry.predicted_r = None
    plotting.run_figures(layers, tmp_path / "figures", history)
    assert plt.get_fignums() == before
    names = {"angles", "angle_scaling", "weights_dot", "activations_dot", "weights"}
    names |= {"angle_history"} if history else set()
    files = {path.name for path in (tmp_path / "figures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf")}
    assert (tmp_path / "figures" / "angles.pdf").read_bytes().startswith(b"%PDF")


def test_run_figures_draws_all_that_has_a_caption(layers, rng, tmp_path):
    layers[0].wc = layers[0].wb = rng.standard_normal((3, 3, 1, 40))
    bases = {name: dict.fromkeys(("weights", "patches", "both"), 0.5) for name in ("as is", "zca")}
    bases |= {"random": bases["zca"], "pca": bases["zca"]}
    substitution = {"none": (0.7, 0.71)}
    plotting.run_figures(layers, tmp_path, HISTORY, bases, substitution, 100)
    assert {path.stem for path in tmp_path.iterdir()} == set(CAPTIONS)


def test_save_figure_returns_the_png(tmp_path):
    figure, _ = plt.subplots()
    path = plotting.save_figure(figure, str(tmp_path), "angles")
    assert path == tmp_path / "angles.png"
    assert plt.imread(path).ndim == 3


def test_the_same_figure_is_the_same_file(tmp_path):
    figure, _ = plt.subplots()
    plotting.save_figure(figure, tmp_path, "angles")
    assert b"Date" not in (tmp_path / "angles.pdf").read_bytes()


def test_controls_are_bars_of_degrees_and_r():
    layers = {"conv_1": (0.6, 0.5), "fc_1": (0.5, 0.9)}
    half = {name: (angle / 2, r / 2) for name, (angle, r) in layers.items()}
    figure = experiment_figures.plot_controls(
        {"trained": layers, "untrained": half, "shuffled": layers}
    )
    angles, correlations = ([bar.get_height() for bar in axis.patches] for axis in figure.axes)
    expected = np.degrees([0.6, 0.5, 0.3, 0.25, 0.6, 0.5])
    np.testing.assert_allclose(angles, expected)
    np.testing.assert_allclose(correlations, [0.5, 0.9, 0.25, 0.45, 0.5, 0.9])
    plt.close(figure)


def test_drift_is_drawn_where_there_are_enough_weights():
    edges = np.array([0.0, 0.1, 0.3, 0.6])
    found = {"drift": np.array([-1.0, 2.0, 9.0]), "drift_count": np.array([500, 100, 99])}
    figure = experiment_figures.plot_drift(edges, {"conv_1": found})
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [0.05, 0.2, 0.45])
    np.testing.assert_array_equal(line.get_ydata(), [-1, 2, np.nan])
    plt.close(figure)
