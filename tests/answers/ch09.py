"""Answers to the exercises of chapter 9: one that is right, and learners' mistakes."""


def layers(sizes):
    return [(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)]


def bytes_right(sizes, form):
    if form == "float":
        return sum((i + 1) * o * 4 for i, o in layers(sizes))
    total = sum(i * o + o * 4 + 8 + 8 for i, o in layers(sizes))
    if form == "static":
        total += 12 + sum(8 * (o - 1) for _, o in layers(sizes))
    return total


def bytes_without_biases(sizes, form):
    return bytes_right(sizes, form) - 4 * sum(sizes[1:])


def bytes_with_small_biases(sizes, form):
    small = 0 if form == "float" else 3 * sum(sizes[1:])
    return bytes_right(sizes, form) - small


def bytes_with_one_grid(sizes, form):
    extra = sum(8 * (o - 1) for _, o in layers(sizes)) if form == "static" else 0
    return bytes_right(sizes, form) - extra


def bytes_with_a_grid_for_each_row(sizes, form):
    extra = sum(8 * (o - 1) for _, o in layers(sizes)) if form == "dynamic" else 0
    return bytes_right(sizes, form) + extra


def bytes_without_entrance(sizes, form):
    return bytes_right(sizes, form) - (12 if form == "static" else 0)


def bytes_with_an_entrance_for_each_layer(sizes, form):
    extra = 12 * (len(sizes) - 2) if form == "static" else 0
    return bytes_right(sizes, form) + extra


def bytes_without_output_grids(sizes, form):
    extra = 0 if form == "float" else 8 * (len(sizes) - 1)
    return bytes_right(sizes, form) - extra


def a_quarter(sizes, form):
    return sum((i + 1) * o * 4 for i, o in layers(sizes)) // (
        1 if form == "float" else 4
    )


def bytes_as_float(sizes, form):
    return float(bytes_right(sizes, form))


def verdict_right(low, high):
    if high < 1:
        return "faster"
    if low > 1:
        return "slower"
    return "no difference"


def verdict_from_the_middle(low, high):
    return "faster" if (low + high) / 2 < 1 else "slower"


def verdict_the_wrong_way_round(low, high):
    turned = {"faster": "slower", "slower": "faster"}
    return turned.get(verdict_right(low, high), "no difference")


def verdict_without_ends(low, high):
    if low < 1 < high:
        return "no difference"
    return "faster" if high <= 1 else "slower"


def verdict_never(low, high):
    return "no difference"


def verdict_in_other_words(low, high):
    return "quicker" if high < 1 else "slower"


def gain_right(width, batch):
    products = batch * width * width
    moved = 4 * batch * width + 4 * batch * width
    with_float = products / (4 * width * width + moved)
    with_int8 = products / (1 * width * width + moved)
    return with_int8 / with_float


def gain_of_the_weight_alone(width, batch):
    return (batch * width**2 / width**2) / (batch * width**2 / (4 * width**2))


def gain_upside_down(width, batch):
    return 1 / gain_right(width, batch)


def gain_without_output(width, batch):
    moved = 4 * batch * width
    return (4 * width**2 + moved) / (width**2 + moved)


def gain_of_one_row(width, batch):
    return gain_right(width, 1)


def gain_with_a_square_too_few(width, batch):
    moved = 8 * batch * width
    return (4 * width + moved) / (width + moved)


def pick_right(table, *, max_bytes, max_loss):
    best = None
    for name, row in table.iterrows():
        lost = table.loc["float", "accuracy"] - row.accuracy
        fits = row.size_bytes <= max_bytes and lost <= max_loss
        if fits and (best is None or row.latency_us < table.latency_us[best]):
            best = name
    if best is None:
        raise ValueError("nothing fits")
    return best


def pick_by(allowed, *, order="latency_us"):
    """A pick that allows what ``allowed(table, max_bytes, max_loss)`` says."""

    def pick(table, *, max_bytes, max_loss):
        fits = table[allowed(table, max_bytes, max_loss)]
        return fits[order].idxmin()

    return pick


def small(table, max_bytes, max_loss):
    return table.size_bytes <= max_bytes


def near(table, max_bytes, max_loss):
    return table.accuracy >= table.accuracy["float"] - max_loss


def both(table, max_bytes, max_loss):
    return small(table, max_bytes, max_loss) & near(table, max_bytes, max_loss)


def near_the_best(table, max_bytes, max_loss):
    most = table.accuracy.max()
    return (table.accuracy >= most - max_loss) & small(table, max_bytes, max_loss)


def near_the_first(table, max_bytes, max_loss):
    first = table.accuracy.iloc[0]
    return (table.accuracy >= first - max_loss) & small(table, max_bytes, max_loss)


def near_both_ways(table, max_bytes, max_loss):
    apart = (table.accuracy - table.accuracy["float"]).abs()
    return (apart <= max_loss) & small(table, max_bytes, max_loss)


def strictly_near(table, max_bytes, max_loss):
    return (table.accuracy > table.accuracy["float"] - max_loss) & (
        table.size_bytes <= max_bytes
    )


def strictly_small(table, max_bytes, max_loss):
    return (table.size_bytes < max_bytes) & near(table, max_bytes, max_loss)


def pick_or_none(table, *, max_bytes, max_loss):
    try:
        return pick_right(table, max_bytes=max_bytes, max_loss=max_loss)
    except ValueError:
        return "none"


def pick_the_row(table, *, max_bytes, max_loss):
    return table.loc[pick_right(table, max_bytes=max_bytes, max_loss=max_loss)]


ANSWERS = {
    "ch09.ex1": {
        "right": bytes_right,
        "wrong": {
            "no biases": (bytes_without_biases, "count the biases too"),
            "biases of one byte": (bytes_with_small_biases, "a bias stays float32"),
            "static per tensor": (
                bytes_with_one_grid,
                "static has one grid for each row",
            ),
            "dynamic per channel": (
                bytes_with_a_grid_for_each_row,
                "dynamic has one grid for each weight",
            ),
            "no entrance": (bytes_without_entrance, "at the entrance are missing"),
            "an entrance for each layer": (
                bytes_with_an_entrance_for_each_layer,
                "stand once, at the entrance",
            ),
            "no output grids": (bytes_without_output_grids, "output is missing"),
            "a quarter of everything": (a_quarter, "the dynamic form of sizes"),
            "a float": (bytes_as_float, "return an int, not float"),
        },
    },
    "ch09.ex2": {
        "right": verdict_right,
        "wrong": {
            "the middle decides": (verdict_from_the_middle, "wherever its middle is"),
            "the wrong way round": (
                verdict_the_wrong_way_round,
                "less time than float",
            ),
            "ends excluded": (verdict_without_ends, "the ends are included"),
            "never a difference": (verdict_never, "does not contain 1"),
            "other words": (verdict_in_other_words, "one of the three verdicts"),
        },
    },
    "ch09.ex3": {
        "right": gain_right,
        "wrong": {
            "weight alone": (gain_of_the_weight_alone, "4 only without activations"),
            "upside down": (gain_upside_down, "turn your ratio over"),
            "no output": (gain_without_output, "the input and the output"),
            "one row": (gain_of_one_row, "every row of the batch"),
            "weight not squared": (gain_with_a_square_too_few, "expected 1.6, got"),
        },
    },
    "ch09.ex4": {
        "right": pick_right,
        "wrong": {
            "the smallest": (pick_by(both, order="size_bytes"), "not the smallest"),
            "bytes ignored": (pick_by(near), "more than max_bytes"),
            "loss ignored": (pick_by(small), "more than max_loss"),
            "loss excluded": (pick_by(strictly_near), "exactly max_loss is allowed"),
            "bytes excluded": (pick_by(strictly_small), "exactly max_bytes is allowed"),
            "near the best form": (pick_by(near_the_best), "not the most accurate"),
            "near the first row": (pick_by(near_the_first), "wherever it stands"),
            "a gain refused": (pick_by(near_both_ways), "is no loss"),
            "a word for none": (pick_or_none, "raise a ValueError"),
            "the row": (pick_the_row, "the name of a form"),
        },
    },
}
