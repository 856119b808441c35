"""An evaluation as text."""

from evaluations import RESULTS, result

from tfssl.downstream.report import table
from tfssl.downstream.results import mark_chosen

TABLE = """\
module          endpoint  knn@100   logistic@1000
--------------------------------------------------
rotation        block1       51.2*           60.0
                block2       63.1            60.0*

x               output                      100.0

pixels                       90.0            25.0
chance                       10.0            10.0
majority class               12.3            12.3
--------------------------------------------------
test accuracy in %; protocol@training labels; * the endpoint that validation chose for its module
logistic stopped at --max_iterations, before its optimum: rotation/block1@1000"""


def test_table():
    results = mark_chosen(RESULTS)
    assert table.table(results, {"chance": 0.1, "majority class": 0.123}) == TABLE


def test_table_says_what_chose_and_what_diverged():
    results = [
        result(
            "x",
            "a",
            0.5,
            0.5,
            "mlp",
            diverged=True,
            chosen_on="folder:f val",
            reported_on="folder:f test",
        ),
        result("x", "b", 0.5, None, "mlp", diverged=False, reported_on="folder:f test"),
    ]
    notes = table.table(mark_chosen(results), {"chance": 0.1}).splitlines()[-2:]
    assert notes == [
        "diverged, so take --standardize or a lower learning rate: mlp x/a",
        "chosen on folder:f val; reported on folder:f test",
    ]


def test_metrics_are_told():
    """Those of our protocols in words; a user's own by its name; accuracies not at all."""
    results = [
        result("x", "a", 0.5, None, metric="F1", protocol="mine"),
        result("x", "a", 0.5, None, metric="AP50", protocol="detection"),
        result("x", "a", 0.5, None, metric="top5_accuracy", protocol="top-5"),
        result("x", "a", 0.5, None, metric="mAP", protocol="svm"),
    ]
    head = (
        "test accuracy (svm: mean average precision; detection: average precision at an IoU of "
        "0.5; mine: F1) in %"
    )
    assert table.notes(results)[0].startswith(head)


def test_lines_of_results():
    few = result("m", "e", 0.5, None, "few_shot", shots=5, std=0.1, ridge=0.1, seconds=2.0)
    assert table.line(few) == "m e few_shot@k=5: 50.0% (std 10.0, ridge 0.1, 2.0 s)"
    dense = result("m", "e", 0.5, None, "detection", metric="AP50", coco_ap=0.25)
    assert table.line(dense) == "m e detection@100: AP50 50.0% (AP 25.0%, 0.0 s)"
