# SPDX-License-Identifier: Apache-2.0
"""The command that makes the documentation's picture writes both cameras' views."""

import cv2

from smolvla_mem_ros.sim.picture import main


def test_both_views_are_written_side_by_side_in_the_right_colours(tmp_path):
    file = tmp_path / "new" / "picture.png"
    assert main([str(file), "--size", "64", "48"]) == 0
    picture = cv2.imread(str(file))
    assert picture.shape == (48, 128, 3)
    blue, _, red = picture[:, :64].reshape(-1, 3).T.astype(int)
    assert (red - blue > 100).mean() > 0.02, "the arm is orange"
