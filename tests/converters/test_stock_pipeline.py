"""Chime's trained teacher, exported, in diffusers' own pipeline: the same clip comes out."""

from experiments.chime import stock_pipeline


def test_diffusers_plays_the_exported_teacher_as_we_do(tmp_path):
    arguments = stock_pipeline.Arguments(prompts="1", seconds=1, steps=2, folder=tmp_path)
    figures = stock_pipeline.run(arguments)
    assert figures["difference"]["largest_pixel_difference"] <= 1
    assert figures["difference"]["largest_sound_difference"] < 0.01
    assert figures["stock"] == figures["own"]
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["own_0.mp4", "stock_0.mp4"]
