"""``diffmd certify`` on frames that exist."""

import json

import pytest


@pytest.fixture
def trajectory(diffmd, start, tmp_path):
    code, _, err = diffmd(*start, "--steps", 60, "--prefix", "md")
    assert code == 0, err
    return tmp_path / "md.h5"


def certify(diffmd, model, trajectory, *more):
    return diffmd("certify", model, "-t", trajectory, "--frames", 12, "--settle", 3, *more)


def test_a_model_against_itself(diffmd, model, trajectory, tmp_path):
    """No score error, no error of averages, a step that has one; files, and words."""
    code, out, err = certify(diffmd, model, trajectory, "--reference", model)
    assert code == 0, err
    assert "visited support" in out and "certified to 0.1 up to" in out
    told = json.loads((tmp_path / "certificate.json").read_text())
    assert told["n_steps"] == 60
    assert told["equilibrium"]["chi2"]["value"] == pytest.approx(0, abs=1e-9)
    assert told["path"]["score_kl"]["value"] == pytest.approx(0, abs=1e-9)
    assert told["path"]["discretisation_kl"]["value"] > 0
    assert len(told["by_step"]["h_A2"]) == 7
    assert len(told["averages"]) >= 6
    for row in told["averages"].values():
        assert abs(row["difference"]["value"]) <= row["bound"]["value"] + 1e-9
    assert (tmp_path / "certificate.png").stat().st_size > 5000
    assert (tmp_path / "certificate.json.yml").is_file()


def test_another_force_field_altogether(diffmd, model, trajectory):
    """Energies without overlap: said, and no bound."""
    code, out, err = certify(diffmd, model, trajectory, "--reference", "lj", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["equilibrium"]["overlap"] is False
    assert told["equilibrium"]["bound_sigma_f"]["value"] is None
    assert "do not overlap" in told["statement"]


def test_runs_of_other_laws(diffmd, model, start, trajectory, tmp_path):
    code, _, err = certify(diffmd, model, trajectory, "--reference", "nobody")
    assert code == 1 and "nobody" in err
    code, _, err = certify(diffmd, "alanine-dipeptide", trajectory, "--reference", "lj")
    assert code == 1
    diffmd(*start, "--steps", 20, "--prefix", "lj", "--target", "lj", "--step-size", 1e-6)
    code, _, err = certify(diffmd, model, tmp_path / "lj.h5", "--reference", "lj")
    assert code == 1 and "accepted to 'lj'" in err
    diffmd(*start, "--steps", 20, "--prefix", "own", "--target", "model")
    code, _, err = certify(diffmd, model, tmp_path / "own.h5", "--reference", model)
    assert code == 0, err
    code, _, err = certify(diffmd, model, tmp_path / "none.h5", "--reference", model)
    assert code == 1 and "none.h5" in err
