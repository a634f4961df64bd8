import re

from selfalign.report.demo_page import bar, curve_svg


def test_curve_falls_where_the_loss_falls_and_leaves_out_what_is_missing():
    svg = curve_svg({"0": 1.0, "10": 0.5, "100": 0.25, "50": None}, 0.9)
    points = re.search(r'points="([^"]+)"', svg).group(1).split()
    xs, ys = zip(*(map(float, point.split(",")) for point in points))
    assert len(points) == 3
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys)  # y grows downward
    assert "random update" in svg
    assert "random update" not in curve_svg({"0": 1.0, "10": 0.5}, None)
    assert curve_svg({}, 0.9) == ""


def test_bar_is_as_long_as_the_share_and_escapes_names():
    text = bar("<b>", {"value": 0.9, "low": 0.7, "high": 0.97}, "good")
    assert 'style="width:90.0%"' in text
    assert 'style="left:70.0%;width:27.0%"' in text
    assert "&lt;b&gt;" in text
