"""Plain sentences about nothing in particular: what a change says of texts unlike its training.

No two begin with the same word: at a first token, texts that begin alike are one text.
"""

from __future__ import annotations

__all__ = ["NEUTRAL"]

NEUTRAL = (
    "The bridge over the river was painted green last summer and has not been closed since.",
    "Most of the rain in this valley falls between October and the end of February.",
    "A library card is valid for one year and can be renewed at the front desk.",
    "Trains to the coast leave from platform four and stop at every village.",
    "Copper conducts heat better than iron, which is why many pans have a copper base.",
    "In the museum's second room there are clocks from three different centuries.",
    "She put the letters into two boxes and wrote the year on each of them.",
    "Beyond the mill the path turns left and then follows the old railway line.",
    "Bread dough rises faster in a warm kitchen than in a cold one.",
    "During the winter months the ferry runs only on Saturdays and Sundays.",
    "Stone was used for the lower part of the wall, and wood for the upper part.",
    "Every spring the town council publishes a map of the new bicycle lanes.",
    "Some birds return to the same lake each year, others choose a new one.",
    "Chapter three of the report describes the harbour, and chapter four the roads.",
    "An old map of the region hangs in the hall beside the stairs.",
    "Glass is made from sand, soda and lime at a high temperature.",
    "Because the room was taken, the meeting was moved from Tuesday to Thursday.",
    "Two of the houses on this street were built before the church.",
    "Salt water freezes at a lower temperature than fresh water does.",
    "He read the first page of the newspaper and left the rest on the table.",
    "This shop sells paper, ink, brushes and a few books about drawing.",
    "North of the lake the summers are short and the days are long.",
    "Water is pumped from the well to the roof by a small engine.",
    "Our orchestra played three pieces, the last of them by a composer from Norway.",
    "Wool keeps its warmth even when it is wet, unlike cotton.",
    "From the tower one can see the lake, the forest and part of the motorway.",
    "When the first frost comes, the tables in the garden are brought inside.",
    "Each volume of the encyclopaedia begins with a list of its authors.",
    "Just before dawn the last boat reached the island.",
    "Over the holidays a new roof was put on the school.",
    "Tea was first brought to the port by ship and later by rail.",
    "For this recipe one needs two onions, a spoon of oil and a cup of rice.",
    "Behind the station there is a square with a fountain and eleven trees.",
    "All paintings are listed in the catalogue together with their size and their owner.",
    "Sheep graze on the hills until the middle of autumn.",
    "Last year the company moved its offices to the other side of the canal.",
    "Light travels from the sun to the earth in a little more than eight minutes.",
    "On a nail beside the kitchen door hangs the key to the cellar.",
    "Four lines of the poem were cut into the stone above the gate.",
    "Yellow trams run through this city, and the buses are mostly white.",
)
