"""Wordings of one instruction: 40 templates, of which the last eight are held out from every training.

A generator that hears one sentence a task learns the sentence; it has to hear many. `paraphrases` fills the templates
with what the input is (`text`: "a dictionary definition") and the list of labels, `answer_paraphrases` with what the
input is and what to write ("its plural").
"""

from collections.abc import Sequence

NUM_HELD_OUT = 8

TEMPLATES = (
    "Decide whether {text} is about {labels}.",
    "Classify {text} as {labels}.",
    "Given {text}, say which of these it concerns: {labels}.",
    "Which one fits {text} best: {labels}?",
    "Sort {text} into one of the classes {labels}.",
    "Read {text} and answer with {labels}.",
    "Label {text} with {labels}.",
    "Your task is to tell from {text} if it speaks of {labels}.",
    "Assign {text} to the category {labels}.",
    "Pick the right category for {text}. Options are {labels}.",
    "Tell me if {text} belongs to {labels}.",
    "I want a classifier that reads {text} and returns {labels}.",
    "Predict the class of {text}: {labels}.",
    "What does {text} describe: {labels}?",
    "For {text}, choose between {labels}.",
    "Determine the kind of thing in {text}; the answer is {labels}.",
    "Categorise {text}: {labels}.",
    "An adapter that recognises {labels} from {text}.",
    "Choose the label that matches {text}. The labels are {labels}.",
    "{labels}: which of them does {text} mean?",
    "Identify what {text} refers to, out of {labels}.",
    "Make the model answer {labels} when it is shown {text}.",
    "Look at {text}. Is it {labels}?",
    "Detect whether {text} is {labels}.",
    "Return one of {labels} for {text}.",
    "Name the topic of {text} ({labels}).",
    "We need to route {text} to {labels}.",
    "Answer with the category of {text}, one of {labels}.",
    "Distinguish {labels} by reading {text}.",
    "The input is {text}; the output is {labels}.",
    "Find out what sort of thing {text} defines: {labels}.",
    "Group every example, {text}, under {labels}.",
    "Please judge {text} and reply with {labels}.",
    "Is the subject of {text} {labels}?",
    "Build something that tells {labels} apart, given {text}.",
    "Mark {text} as {labels}.",
    "Separate {labels} using {text}.",
    "Read {text}, then say what it is: {labels}.",
    "Text classification of {text} into {labels}.",
    "Out of {labels}, which is meant by {text}?",
)


def paraphrases(text: str, labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training wordings and the held-out wordings for an input called `text` and these labels."""
    listed = ", ".join(labels[:-1]) + " or " + labels[-1]
    filled = [template.format(text=text, labels=listed) for template in TEMPLATES]
    filled = [sentence[0].upper() + sentence[1:] for sentence in filled]
    return tuple(filled[:-NUM_HELD_OUT]), tuple(filled[-NUM_HELD_OUT:])


ANSWER_TEMPLATES = (
    "Given {text}, write {answer}.",
    "You get {text}. Reply with {answer}.",
    "Turn {text} into {answer}.",
    "For {text}, give {answer}.",
    "The input is {text}; the output is {answer}.",
    "Read {text} and write down {answer}.",
    "Your task is to produce {answer} from {text}.",
    "I will show you {text}. Tell me {answer}.",
    "Return {answer} for {text}.",
    "What I want for {text} is {answer}, nothing else.",
    "Take {text} and answer with {answer}.",
    "Write {answer} when you see {text}.",
    "Complete the exercise: {text} is given, {answer} is asked for.",
    "Please convert {text}: the result is {answer}.",
    "An adapter that reads {text} and writes {answer}.",
    "From {text}, derive {answer}.",
    "Each example is {text}. Answer each with {answer}.",
    "State {answer}; what you are given is {text}.",
    "Make the model answer {answer} when it is shown {text}.",
    "Here is {text}. Say {answer}.",
    "Work out {answer} for {text}.",
    "Given as input: {text}. Expected: {answer}.",
    "We need {answer} for {text}.",
    "Look at {text} and respond with {answer}.",
    "Find {answer} for {text}.",
    "Rewrite {text} as {answer}.",
    "When the user types {text}, output {answer}.",
    "Generate {answer}, starting from {text}.",
    "Map {text} to {answer}.",
    "Answer in one line: for {text}, what is {answer}?",
    "Supply {answer} in response to {text}.",
    "Build something that is given {text} and returns {answer}.",
    "Could you write {answer} whenever I send {text}?",
    "Transform {text}; the answer is {answer}.",
    "{text} comes in, {answer} goes out.",
    "Respond to {text} with {answer} only.",
    "It is about {text}: provide {answer}.",
    "Exercise: write {answer}. Material: {text}.",
    "Take as input {text}, then print {answer}.",
    "Out of {text}, make {answer}.",
)


def answer_paraphrases(text: str, answer: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training wordings and the held-out wordings for an input called `text` and an answer called `answer`."""
    filled = [template.format(text=text, answer=answer) for template in ANSWER_TEMPLATES]
    filled = [sentence[0].upper() + sentence[1:] for sentence in filled]
    return tuple(filled[:-NUM_HELD_OUT]), tuple(filled[-NUM_HELD_OUT:])
