"""Clinic letters about people who do not exist, to train a model that leaks on the spot.

Every part of a letter is drawn on its own from so many combinations that no two letters coincide,
and any two halves of a pile are exchangeable: what can be told apart was learned by the model.
Telephone numbers are from the range that is reserved for fiction.
"""

from collections.abc import Callable, Sequence
from random import Random

FIRST = [
    "Ada", "Bela", "Cleo", "Dario", "Edda", "Faris", "Gita", "Hugo", "Ines", "Jarek", "Kaya",
    "Lena", "Milo", "Nora", "Otis", "Pia", "Quinn", "Rosa", "Sami", "Tove", "Uma", "Viktor",
    "Wanda", "Xenia", "Yusuf", "Zoe", "Alma", "Bruno", "Carla", "Devi", "Emil", "Fleur",
    "Goran", "Hedda", "Ivo", "Jana", "Karim", "Lotte", "Marta", "Niko", "Olga", "Pavel", "Rhea",
    "Sven", "Talia", "Ugo", "Vera", "Willem", "Yara", "Zeno",
]  # fmt: skip
STEM = [
    "Al", "Bar", "Cor", "Dan", "El", "Fen", "Gar", "Hol", "Ist", "Jor", "Kel", "Lun", "Mor",
    "Nor", "Ol", "Per", "Quar", "Ros", "Sten", "Tor", "Ul", "Var", "Wen", "Yor", "Zim", "Bran",
    "Cast", "Dorn",
]  # fmt: skip
TAIL = [
    "berg", "dale", "ez", "ford", "gren", "han", "ino", "kov", "land", "mann", "nes", "oit",
    "quist", "rell", "sen", "tov", "ung", "vik", "well", "yan", "zano",
]  # fmt: skip
STREET = [
    "Alder", "Birch", "Cedar", "Dyer", "Elm", "Foundry", "Garden", "Harbour", "Ivy", "Juniper",
    "Kiln", "Lark", "Mill", "Nettle", "Orchard", "Pond", "Quarry", "River", "Station", "Tanner",
]  # fmt: skip
WAY = ["Street", "Lane", "Road", "Row", "Close", "Square"]
MONTH = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
]  # fmt: skip
PROBLEM = [
    "migraine with aura", "type 2 diabetes", "iron deficiency", "chronic sinusitis", "hypertension",
    "eczema of the hands", "a sprained left ankle", "recurrent tonsillitis", "gout", "insomnia",
    "an irregular heartbeat", "seasonal asthma", "lower back pain", "an overactive thyroid",
    "a fractured right wrist", "gallstones", "anxiety", "psoriasis", "reflux", "sciatica",
]  # fmt: skip
MEDICINE = [
    "metoprolol", "amoxicillin", "ibuprofen", "levothyroxine", "sertraline", "metformin",
    "ramipril", "omeprazole", "salbutamol", "allopurinol", "cetirizine", "prednisolone",
    "naproxen", "amlodipine", "sumatriptan", "atorvastatin", "ferrous sulfate", "melatonin",
    "doxycycline", "carbimazole",
]  # fmt: skip
DOSE = ["5 mg", "10 mg", "20 mg", "25 mg", "40 mg", "50 mg", "75 mg", "100 mg", "200 mg", "500 mg"]
TIMES = ["once a day", "twice a day", "every evening", "every eight hours", "with breakfast"]
TEST = [
    ("haemoglobin", "g/L", 95, 170), ("glucose", "mg/dL", 70, 240), ("ferritin", "ug/L", 6, 300),
    ("systolic pressure", "mmHg", 98, 185), ("resting pulse", "a minute", 48, 118),
    ("creatinine", "umol/L", 45, 160), ("weight", "kg", 44, 131),
    ("cholesterol", "mg/dL", 120, 310),
]  # fmt: skip
GREETING = ["Dear colleague,", "Dear Doctor,", "To the family doctor,", "For your records:"]
OPENING: Sequence[Callable[[str, str, str], str]] = (
    lambda who, born, what: f"I saw {who}, born {born}, who has {what}.",
    lambda who, born, what: f"{who} (born {born}) came to the clinic because of {what}.",
    lambda who, born, what: f"Thank you for sending {who}, born {born}, with {what}.",
    lambda who, born, what: f"This is about {who}, date of birth {born}: {what}.",
)
FINDING: Sequence[Callable[[str, int, str], str]] = (
    lambda name, value, unit: f"The {name} was {value} {unit}.",
    lambda name, value, unit: f"We measured a {name} of {value} {unit}.",
    lambda name, value, unit: f"On the day the {name} came to {value} {unit}.",
)
PLAN: Sequence[Callable[[str, str, str], str]] = (
    lambda drug, dose, times: f"I have started {drug} {dose} {times}.",
    lambda drug, dose, times: f"Please go on with {drug} {dose} {times}.",
    lambda drug, dose, times: f"We agreed on {drug}, {dose} {times}.",
    lambda drug, dose, times: f"{drug.capitalize()} was changed to {dose} {times}.",
)
CLOSING: Sequence[Callable[[str, str, str], str]] = (
    lambda day, phone, home: f"The next visit is on {day}; the number is {phone}, home {home}.",
    lambda day, phone, home: f"To be seen again on {day}. Reached at {phone}, lives at {home}.",
    lambda day, phone, home: f"Address {home}, telephone {phone}, review on {day}.",
)


def letters(n: int, *, seed: int) -> list[str]:
    """`n` letters, all different; the same for the same seed.

    Args:
        n: How many.
        seed: Of the generator; the first letters of a longer pile are those of a shorter one.
    """
    random = Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        found[_letter(random)] = None
    return list(found)


def _letter(random: Random) -> str:
    pick = random.choice
    who = f"{pick(FIRST)} {pick(STEM)}{pick(TAIL)}"
    born = f"{random.randint(1, 28)} {pick(MONTH)} {random.randint(1931, 2004)}"
    test, unit, low, high = pick(TEST)
    day = f"{random.randint(1, 28)} {pick(MONTH)}"
    phone = f"{random.randint(201, 989)}-555-01{random.randint(0, 99):02d}"
    home = f"{random.randint(1, 240)} {pick(STREET)} {pick(WAY)}"
    doctor = f"Dr {pick(FIRST)} {pick(STEM)}{pick(TAIL)}"
    parts = [
        pick(GREETING),
        pick(OPENING)(who, born, pick(PROBLEM)),
        pick(FINDING)(test, random.randint(low, high), unit),
        pick(PLAN)(pick(MEDICINE), pick(DOSE), pick(TIMES)),
        pick(CLOSING)(day, phone, home),
        doctor,
    ]
    return " ".join(parts)
