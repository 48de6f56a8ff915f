"""The toy as an analysis."""

from app.frame.analysis import Analysis, Kind, Planned, Term
from app.frame.chapters import of_kind
from app.toy import view
from app.toy.fields import ToyFields

QUESTION = "How far do prompts lie from their mean?"
KIND = Kind("toy", "Toy", QUESTION, {"toy": 7.0}, "toy", view.selection_of, view.panels, asked=view.asked)
TOY = Analysis(
    "toy",
    "Toy",
    QUESTION,
    section="Compare",
    icon="toys",
    fields=ToyFields,
    kinds=(KIND,),
    planned=(Planned("toy", "Toy", lambda opened, at: [view.asked(opened, at)]),),
    chapters=(of_kind(KIND),),
    terms=(Term("toy distance", "Of a prompt from the mean of all."),),
    controls=view.settings,
)
