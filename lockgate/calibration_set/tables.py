"""Hand-written material of the calibration set: subjects with what there is to say, scenes, letters, small programs."""

from __future__ import annotations

SUBJECTS: dict[str, tuple[str, ...]] = {
    "how bread rises": (
        "Yeast feeds on the sugar in the flour and gives off gas while it does so.",
        "Kneading lines up the gluten, which then holds the gas like many small balloons.",
        "A warm kitchen speeds the whole thing up, whereas a cold one gives more flavor.",
        "In the oven the bubbles grow for a few minutes until the crumb has set.",
        "Salt slows the yeast down, so it is usually added after the first mixing.",
    ),
    "why leaves turn yellow": (
        "Chlorophyll is broken down when nights grow longer, and its green fades.",
        "What stays behind are carotenoids, which had been there all summer.",
        "Red tones are made afresh from sugars that are trapped in the leaf.",
        "A layer of cork closes the stem, and a light wind is then enough.",
        "Dry autumns with bright afternoons give the strongest colors.",
    ),
    "repairing a bicycle tube": (
        "Pump up the loose tube and listen, or hold it under water and look for bubbles.",
        "Mark the spot, let the air out and roughen the rubber with sandpaper.",
        "Spread a thin film of cement and wait until it no longer feels wet.",
        "Press the patch on firmly from the middle to the edge.",
        "Before refitting, feel along the inside of the tire for the splinter that did it.",
    ),
    "how a refrigerator works": (
        "A liquid evaporates in the coils inside and takes heat out of the air there.",
        "The compressor squeezes the vapor, which makes it hot.",
        "Behind the cabinet it gives this heat to the room and becomes liquid again.",
        "A narrow valve lets the pressure drop, and the circle starts over.",
        "Dust on the rear grille makes the machine run longer for the same cold.",
    ),
    "planting tomatoes": (
        "Seedlings go out only after the last frost, into a sunny and sheltered bed.",
        "They may be set deeper than they stood before, since the stem grows roots.",
        "Water the soil and not the leaves, or blight will find its way.",
        "Side shoots are pinched off so that the fruit gets the strength.",
        "A stake on the day of planting spares the roots a wound later.",
    ),
    "the tides": (
        "The moon pulls a little harder on the near side of the earth than on the far one.",
        "So the ocean bulges on both sides, and the turning coast passes through the bulges.",
        "When sun and moon pull along one line, the range is largest.",
        "Narrow bays can gather the wave and raise it by many meters.",
        "Harbor masters read tables computed years ahead to the minute.",
    ),
    "keeping a budget": (
        "Write down for one month what is really spent, without changing anything.",
        "Sort the entries into what must be paid, what is useful and what is fun.",
        "Move a fixed sum into savings on payday rather than what is left at the end.",
        "Rare large bills are divided by twelve and treated as monthly.",
        "Look at the totals once a week; a budget nobody reads is only paper.",
    ),
    "choosing hiking boots": (
        "Try them in the evening, when feet have swollen a little, with the socks for the trip.",
        "The heel should sit still while the toes can move downhill without touching.",
        "Stiff soles help on scree and with a heavy pack, soft ones on forest paths.",
        "Membranes keep rain out, but they also dry slowly once water is in.",
        "Walk them in over several short rounds before the first long day.",
    ),
    "how vaccines work": (
        "They show the immune system a harmless piece of a germ.",
        "Some cells learn its shape and remain as memory for years.",
        "When the real germ arrives, the answer comes within hours instead of days.",
        "A second dose makes the memory stronger and longer.",
        "A sore arm for a day is usually a sign of that learning.",
    ),
    "sorting algorithms": (
        "Insertion sort takes each element and moves it left until it fits.",
        "Merge sort splits the list, sorts both halves and zips them together.",
        "Quicksort chooses a pivot and puts smaller values before it and larger ones behind.",
        "For nearly ordered input the simple method is often the fastest.",
        "A stable sort keeps the order of entries that compare as equal.",
    ),
    "writing a good commit message": (
        "The first line says what changes, in the imperative and in few words.",
        "After an empty line comes the reason, which the diff cannot show.",
        "Mention what was tried and rejected if somebody might try it again.",
        "Unrelated edits deserve commits of their own, however small.",
        "Future readers come here from a search, so name the symptom too.",
    ),
    "how sound travels": (
        "A vibrating body pushes the air next to it, and the push is handed on.",
        "Nothing moves far; only the pattern of dense and thin places travels.",
        "In water it goes more than four times as fast, in steel about fifteen times.",
        "High tones are swallowed by fog and curtains sooner than low ones.",
        "An echo needs a hard wall some seventeen meters away to be heard apart.",
    ),
    "making coffee": (
        "Grind just before brewing, coarse for a press and fine for a machine under pressure.",
        "Water a little below boiling draws out sweetness and leaves bitterness behind.",
        "Sixty grams a liter is a fair beginning for a filter.",
        "If it tastes sour, grind finer or wait longer; if bitter, do the opposite.",
        "Old oil in the pot spoils every fresh cup, so wash it daily.",
    ),
    "reading a contour map": (
        "Each brown line joins places of the same height above the sea.",
        "Where the lines crowd together the slope is steep.",
        "Nested rings are summits, or hollows when small ticks point inwards.",
        "A valley shows as a row of V shapes whose tips point uphill.",
        "Count the lines on your route to know how much you will climb.",
    ),
    "how batteries age": (
        "Every charge leaves a thin film on the electrode, and the film takes up lithium.",
        "Heat does more harm than use, above all when the cell is full.",
        "Keeping the level between one quarter and three quarters slows the loss.",
        "Fast charging in frost can plate metal where it does not belong.",
        "The gauge drifts as well, so a rare full cycle helps it to find its ends.",
    ),
    "learning a language": (
        "Short daily sessions beat one long evening a week.",
        "Whole phrases stick better than single words, since grammar comes along for free.",
        "Listen to something slightly too hard and guess from what you know.",
        "Speak early and badly; silence teaches nothing.",
        "Review a card just before you would forget it, and the gap grows each time.",
    ),
    "caring for cast iron": (
        "A thin coat of oil baked on turns into a hard and slick skin.",
        "Warm water and a brush are enough; a drop of soap does no harm.",
        "Dry the pan on the stove at once, for rust starts within the hour.",
        "Sour sauces left standing will eat the coating.",
        "If it is ruined, scour it down to grey metal and begin again.",
    ),
    "how bridges carry weight": (
        "A beam bends, so its top is squeezed and its bottom is stretched.",
        "An arch turns the load into pressure and leads it to the banks.",
        "Cables can only pull, which is why suspension needs towers and anchors.",
        "Trusses are triangles, since a triangle cannot change shape without changing a side.",
        "Joints leave room for steel to grow on summer days.",
    ),
    "migrating birds": (
        "Young cuckoos find their way without ever having met their parents.",
        "Stars, the sun, smells and a sense for magnetism all play a part.",
        "Formations save strength because each wing rides on the swirl of the one ahead.",
        "Some waders double their weight before crossing an ocean.",
        "Bright towers confuse them on cloudy nights, so lights are dimmed in season.",
    ),
    "planning a meeting": (
        "Say in the invitation what is to be decided and by whom.",
        "Send the numbers beforehand so that nobody reads aloud.",
        "Five people decide; fifteen listen.",
        "Begin with the hardest point while heads are fresh.",
        "End with names and dates, written where everybody sees them.",
    ),
    "how glaciers move": (
        "Snow is pressed to ice, and thick ice flows like very stiff honey.",
        "The middle runs faster than the edges, which scrape along rock.",
        "Meltwater at the bed lets the whole body slide.",
        "Where the ground falls away, the brittle surface tears into crevasses.",
        "Boulders carried down are dropped as ridges that mark old ends.",
    ),
    "painting a room": (
        "Empty it, cover the floor and take the plates off the switches.",
        "Fill holes, let them dry and sand them until your palm feels no edge.",
        "Cut in the corners with a brush before the roller comes.",
        "Work from the window inwards and keep the edge wet.",
        "Two thin coats hide more than a single thick one.",
    ),
    "what a hash function does": (
        "It turns any amount of data into a value of fixed length.",
        "The same bytes always give the same value, on any computer.",
        "One flipped bit changes about half of the result.",
        "Nobody can practically find two inputs that collide, if it is a good one.",
        "That makes it fit for naming files by what is in them.",
    ),
    "making cheese": (
        "Cultures sour the milk, then rennet makes it set like custard.",
        "Cutting the curd finer drives out more whey and gives a harder cheese.",
        "Salt is rubbed in or the wheel swims in brine overnight.",
        "In the cellar the rind is turned and washed every few days.",
        "Holes come from bacteria that breathe out gas in the warm room.",
    ),
    "how a lock works": (
        "Springs push pairs of pins across the line between plug and body.",
        "The proper key lifts every pair so that its gap lies on that line.",
        "Then nothing holds the plug any more, and it turns.",
        "Master systems add a third pin, so that two heights will do.",
        "Graphite keeps it running; oil gathers dust.",
    ),
    "training for a long run": (
        "Most kilometers should be so slow that talking is easy.",
        "One longer outing a week grows by about a tenth at a time.",
        "Every fourth week is lighter, since bodies build while resting.",
        "New shoes are never worn for the first time on race day.",
        "Eat and drink in training what you will eat and drink later.",
    ),
    "the history of paper": (
        "It was beaten from bark and rags long before wood was used.",
        "Mills needed clear streams, so they crowded into certain valleys.",
        "Watermarks told buyers whose sheet they held.",
        "Machines with an endless wire made it cheap in the nineteenth century.",
        "Acid left in cheap pulp is why old newspapers crumble.",
    ),
    "setting up a home network": (
        "Place the router high and central rather than in a cupboard.",
        "Use a cable for whatever never moves.",
        "Neighbors on the same channel share the air, so pick a quiet one.",
        "Guests get a network of their own that sees no printers.",
        "Write the passphrase on a card, not on the case.",
    ),
    "how clouds form": (
        "Rising air expands, and expanding cools it.",
        "Below the dew point vapor settles on dust as tiny drops.",
        "These are so light that the updraft carries them.",
        "Flat bases show the height at which that begins.",
        "Ice on top spreads out like an anvil when a storm is ripe.",
    ),
    "negotiating a price": (
        "Know beforehand what you will do if there is no agreement.",
        "Ask open questions and let pauses stand.",
        "Trade what costs you little for what helps you much.",
        "Round figures sound guessed; odd ones sound computed.",
        "Leave the other side something to tell at home.",
    ),
    "why ships float": (
        "A hull pushes water aside, and that water pushes back with its weight.",
        "Steel sinks as a lump, but a bowl of it takes up far more room.",
        "Ballast low in the ship keeps it upright in a swell.",
        "The painted marks at the bow show how deep it may lie, by season.",
        "Bulkheads divide the space so that one leak is not the end.",
    ),
    "backing up files": (
        "Three copies, on two kinds of media, one of them elsewhere.",
        "Let a timer start it, since people forget.",
        "A copy that was never restored is a hope and no backup.",
        "Keep older versions too, because mistakes are noticed late.",
        "Disks in a drawer want to be read through once a year.",
    ),
}

ASKING = (
    "Could you explain {} to somebody who has never heard of it?",
    "I have to give a short talk on {}. What are the main points?",
    "Please tell me about {} in plain words.",
    "What should a beginner know about {}?",
)

SCENES: dict[str, tuple[str, ...]] = {
    "who": (
        "Marta, who had never liked elevators,", "The new caretaker", "An engineer from the power company",
        "My grandmother's youngest sister", "A tired courier", "The girl with the violin case", "Old Mr. Ferreira",
        "The night nurse", "A student on her first day", "The man who wound the clocks", "Our neighbor's cousin",
        "The shortest of the three climbers",
    ),
    "did": (
        "opened the wrong envelope and read it to the end before noticing",
        "counted the steps twice, because the numbers did not agree",
        "had promised to be back by noon, yet stayed until the lamps were lit",
        "laughed so suddenly that the pigeons flew up from the roof",
        "drew a plan of the house on the back of a receipt",
        "found the missing screw in the sugar bowl",
        "asked nobody and carried the heavy case up alone",
        "waited under the awning for the hail to stop",
        "explained the rules again, this time with matches and corks",
        "repaired the radio with a hairpin and considerable patience",
    ),
    "then": (
        "Afterwards it was hard to say who had been more surprised.",
        "The dog, at least, was satisfied.",
        "Nobody mentioned it at dinner, which said enough.",
        "By then the last tram had gone, and walking took an hour.",
        "Two weeks later a postcard came with an apology and a pressed flower.",
        "The mistake turned out to be worth more than the plan.",
        "It rained all through the following day.",
        "Only the receipt remained, folded small, in a coat pocket.",
    ),
}  # fmt: skip

PLACES = (
    "Lindenau",
    "Port Varela",
    "Kessby",
    "Alta Roca",
    "Brenmoor",
    "Sant Oriol",
    "Tverdal",
    "Quiller's Bay",
)
PEOPLE = (
    "Ines",
    "Tobias",
    "Rahel",
    "Mikkel",
    "Yusuf",
    "Dorota",
    "Leander",
    "Saskia",
    "Bruno",
    "Amara",
)
GOODS = (
    "garden hoses",
    "desk lamps",
    "packing boxes",
    "thermos flasks",
    "bicycle bells",
    "paper rolls",
)

PROGRAMS: tuple[tuple[str, str], ...] = (
    (
        "a Python function that counts words",
        "def count_words(text: str) -> dict[str, int]:\n    counts: dict[str, int] = {}\n    for word in text.lower().split():\n"
        "        counts[word] = counts.get(word, 0) + 1\n    return counts\n",
    ),
    (
        "a Python class for a bounded queue",
        "class Bounded:\n    def __init__(self, limit):\n        self.limit = limit\n        self.items = []\n\n"
        "    def put(self, item):\n        if len(self.items) >= self.limit:\n            raise OverflowError(self.limit)\n"
        "        self.items.append(item)\n\n    def get(self):\n        return self.items.pop(0)\n",
    ),
    (
        "a shell loop that renames pictures",
        'for file in *.jpeg; do\n    mv -- "$file" "${file%.jpeg}.jpg"\ndone\n',
    ),
    (
        "an SQL query for the best customers",
        "SELECT customer, SUM(amount) AS total\nFROM orders\nWHERE placed >= DATE '2024-01-01'\nGROUP BY customer\n"
        "HAVING SUM(amount) > 1000\nORDER BY total DESC\nLIMIT 20;\n",
    ),
    (
        "JavaScript that debounces a callback",
        "function debounce(callback, wait) {\n  let timer = null;\n  return (...args) => {\n    clearTimeout(timer);\n"
        "    timer = setTimeout(() => callback(...args), wait);\n  };\n}\n",
    ),
    (
        "a C function that reverses a string",
        "void reverse(char *s, size_t n) {\n    for (size_t i = 0; i < n / 2; i++) {\n        char c = s[i];\n"
        "        s[i] = s[n - 1 - i];\n        s[n - 1 - i] = c;\n    }\n}\n",
    ),
    (
        "a Makefile for one small library",
        "CFLAGS = -O2 -Wall\n\nlibshape.a: circle.o square.o\n\tar rcs $@ $^\n\nclean:\n\trm -f *.o libshape.a\n\n.PHONY: clean\n",
    ),
    (
        "a Rust function that finds the largest value",
        "fn largest(values: &[i64]) -> Option<i64> {\n    let mut best = *values.first()?;\n    for &value in values {\n"
        "        if value > best {\n            best = value;\n        }\n    }\n    Some(best)\n}\n",
    ),
)

LETTERS: tuple[str, ...] = (
    "Dear {person},\n\nthank you for the samples that reached us in {place} on Tuesday. Two of the {number} {goods} were scratched; "
    "the rest are just what we had hoped for. Could you let us know by Friday whether replacements can be sent together with the "
    "next delivery?\n\nWith kind regards\n{other}",
    "Hello {person},\n\nthe workshop in {place} moves to the larger hall, since {number} people have signed up by now. Please bring "
    "your own notebook, and tell {other} if you need a ride from the station. Coffee is taken care of.\n\nSee you there!",
    "To all tenants\n\nOn account of works on the main pipe there will be no water in {place} Street {number} between nine and "
    "one o'clock. {person} from the office has keys to the laundry room, where a tap stays in service. Questions go to {other}.",
    "Minutes\n\nPresent: {person}, {other}. The order of {number} {goods} for {place} was approved. {person} asks for two more "
    "offers before anything above that is bought. The next meeting is in three weeks; {other} keeps the list of open points.",
)
