import pytest

from study.cards import _CARDS, card_memory


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("T4", 14.6),
        ("Tesla T4", 14.6),
        ("l4", 22.0),
        ("A100-40GB", 39.4),
        ("a100_80gb", 79.2),
        ("NVIDIA A100-SXM4-80GB", 79.2),
        ("NVIDIA A100-PCIE-40GB", 39.4),
        ("Tesla V100-SXM2-32GB", 31.7),
        ("H100", 79.1),
        ("NVIDIA H100 80GB HBM3", 79.1),
        ("H100 NVL", 93.1),
        ("NVIDIA H200", 139.8),
        ("B200", 178.3),
        ("RTX 4090", 23.6),
        ("rtx4090", 23.6),
        ("NVIDIA GeForce RTX 4060 Ti 16GB", 15.6),
        ("NVIDIA RTX 6000 Ada Generation", 47.5),
        ("A6000", 47.5),
    ],
)
def test_cards_are_found_by_the_names_people_use(name: str, gib: float) -> None:
    assert card_memory(name) == int(gib * 2**30)


def test_a_card_reports_a_little_less_than_its_name_says() -> None:
    for card, sizes in _CARDS.items():
        for size in sizes:
            # A GB of a name is 2^30 bytes, but for the largest cards 10^9.
            assert 0.9 * size * 10**9 < card_memory(f"{card}-{size}GB") <= size * 2**30


def test_a_card_of_several_sizes_needs_the_size() -> None:
    with pytest.raises(ValueError, match="write RTX 3060-8GB or RTX 3060-12GB"):
        card_memory("rtx 3060")
    assert card_memory("rtx 3060 12gb") > card_memory("rtx 3060 8gb")


@pytest.mark.parametrize("name", ["RTX 4090 Laptop GPU", "T5", "A100-60GB", "RTX 40900"])
def test_another_card_is_not_taken_for_one(name: str) -> None:
    with pytest.raises(ValueError, match="no card of that name"):
        card_memory(name)


def test_near_names_are_listed() -> None:
    with pytest.raises(ValueError, match="A100-40GB"):
        card_memory("A100-60GB")
