from espnet_atm.scoring import make_batches


def test_batches_hold_utterances_of_about_the_same_length():
    lengths = {"a": 10, "b": 50, "c": 12, "d": 48, "e": 200, "f": 50}
    found = make_batches(lengths, batch_bins=100, alone=False)
    assert found == [["e"], ["b", "f"], ["d"], ["c", "a"]] or found == [
        ["e"],
        ["b", "f"],
        ["d", "c"],
        ["a"],
    ]
    assert all(
        len(x) == 1 or len(x) * max(lengths[utt] for utt in x) <= 100 for x in found
    )
    alone = make_batches(lengths, batch_bins=1000, alone=True)
    assert alone == [["e"], ["b", "f"], ["d"], ["c"], ["a"]]
    del lengths["e"]
    padded = make_batches(lengths, batch_bins=200, alone=False, window=100)
    assert padded == [["b", "f"], ["d", "c"], ["a"]]
