"""Pieces of an uneventful journal, out of which the long-context items are made."""

from __future__ import annotations

SENTENCES: tuple[str, ...] = (
    "The ferry was late again, and the men on the pier talked about the weather.",
    "A boy sold newspapers at the corner until the rain drove him home.",
    "In the afternoon the baker swept the floor and closed the shutters.",
    "Two gulls fought over a crust of bread on the wall of the harbor.",
    "The postman brought a parcel for the house with the green fence.",
    "Somebody had painted the bench by the fountain, and nobody dared to sit on it.",
    "The clock of the town hall struck a quarter past three.",
    "A dog slept in the doorway of the bookshop and did not move for anybody.",
    "The teacher corrected a pile of exercise books by the window.",
    "On the market they sold onions, candles and wooden spoons.",
    "The old bridge creaked when the milk cart went over it.",
    "A woman with a blue scarf asked for the way to the station.",
    "The gardener cut the hedge and left the branches beside the path.",
    "In the evening the lamps along the river were lit one after the other.",
    "The barber told the same story that he had told the week before.",
    "A letter lay on the table, and nobody knew who had written it.",
    "The train from the north carried timber and a few sleepy travelers.",
    "Children drew a large ship with chalk on the square.",
    "The smith mended a gate and whistled through his teeth.",
    "It smelled of soup in the stairs of the narrow house.",
    "The doctor drove out to the farms before it was light.",
    "A band practiced in the hall behind the church until late.",
    "The weaver hung long strips of cloth over the fence to dry.",
    "Nobody remembered when the mill had last been at work.",
)

KEEPERS: tuple[str, ...] = (
    "red door", "iron chest", "north tower", "old cellar", "boat house", "glass cabinet", "garden gate", "music room",
    "wine store", "small office", "stone barn", "upper attic", "back kitchen", "map room", "bell tower", "summer house",
    "green trunk", "long gallery", "tool shed", "reading room",
)  # fmt: skip
