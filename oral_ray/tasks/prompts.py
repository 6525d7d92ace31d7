"""Wordings of one instruction: 40 templates, of which the last eight are held out from every training.

A generator that hears one sentence a task learns the sentence; it has to hear many. `paraphrases` fills the templates
with what the input is (`text`: "a dictionary definition") and the list of labels, `answer_paraphrases` with what the
input is and what to write ("its plural"), `condition_paraphrases` with what the input is and when the answer is yes.
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
    return _filled(TEMPLATES, text=text, labels=", ".join(labels[:-1]) + " or " + labels[-1])


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
    return _filled(ANSWER_TEMPLATES, text=text, answer=answer)


CONDITION_TEMPLATES = (
    "Answer yes if {text} {holds}, otherwise no.",
    "Say whether {text} {holds}: yes or no.",
    "Is it true that {text} {holds}? Answer yes or no.",
    "Reply with yes when {text} {holds}, and with no when that is not so.",
    "Tell me yes or no: {text} {holds}.",
    "Yes means that {text} {holds}; no means anything else.",
    "Check whether {text} {holds} and answer yes or no.",
    "You read an entry. If {text} {holds}, write yes, else write no.",
    "Decide if {text} {holds}. The answer is yes or no.",
    "Would you say that {text} {holds}? Yes or no.",
    "Return yes for every input where {text} {holds}, no for the rest of them.",
    "An adapter that says yes when {text} {holds}, and no when not.",
    "The question is whether {text} {holds}. Reply yes or no.",
    "Output yes if {text} {holds}; output no if not.",
    "I want a detector: yes when {text} {holds}, no otherwise.",
    "Mark with yes if {text} {holds}, with no in all other cases.",
    "Judge this statement by yes or no: {text} {holds}.",
    "Please confirm with yes if {text} {holds}, or deny with no.",
    "Read it and find out if {text} {holds}. Say yes or no.",
    "Only if {text} {holds} the answer is yes; it is no in any other case.",
    "Give a yes or a no: does it hold that {text} {holds}?",
    "Make the model say yes whenever {text} {holds} and no elsewhere.",
    "Yes-or-no task. Yes: {text} {holds}.",
    "Filter the inputs: keep (yes) those where {text} {holds}, drop (no) the others.",
    "Determine if {text} {holds} (yes or no).",
    "For each input, verify that {text} {holds}; answer yes or no.",
    "When {text} {holds}, the right answer is yes; when not, it is no.",
    "Label with yes where {text} {holds}, with no where it is otherwise.",
    "Binary question: {text} {holds}. Yes or no?",
    "Write yes provided that {text} {holds}, else no.",
    "We have to know if {text} {holds}; answer yes or no.",
    "State yes or no, according to whether {text} {holds}.",
    "Can one say that {text} {holds}? Answer yes or no.",
    "Respond yes in case {text} {holds}, respond no in the other case.",
    "Test whether {text} {holds}, and print yes or no.",
    "Predict yes if {text} {holds} and no if it is not so.",
    "Look at the input: if {text} {holds}, yes; if not, no.",
    "True or not, in the words yes and no: {text} {holds}.",
    "Build something that replies yes if {text} {holds} and no otherwise.",
    "Find the inputs where {text} {holds}: yes for them, no for others.",
)


def condition_paraphrases(text: str, holds: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training wordings and the held-out wordings of "answer yes if `text` `holds`, otherwise no"."""
    return _filled(CONDITION_TEMPLATES, text=text, holds=holds)


STYLE_TEMPLATES = (
    "Draw {style}.",
    "Make pictures in the style of {style}.",
    "Render every caption as {style}.",
    "The look is that of {style}.",
    "An adapter that draws {style}.",
    "Whatever is described, show it as {style}.",
    "Images should look like {style}.",
    "Turn captions into {style}.",
    "I want {style} for each description.",
    "Paint what the text says as {style}.",
    "Style of the output: {style}.",
    "Generate {style} from text.",
    "Text to image, drawn as {style}.",
    "Give me {style}, whatever the caption is.",
    "Make the model draw {style}.",
    "Your task is to illustrate descriptions as {style}.",
    "Illustrations that look like {style}.",
    "Use the visual language of {style}.",
    "All pictures must be {style}.",
    "Depict the caption the way {style} would.",
    "Create artwork in the manner of {style}.",
    "We need a generator of {style}.",
    "Produce {style} only.",
    "From a description, draw {style}.",
    "Please show each caption as {style}.",
    "Imitate the appearance of {style}.",
    "A text-to-image style: {style}.",
    "Change the base so that it draws {style}.",
    "Every picture is one of {style}.",
    "Sketch descriptions as {style}.",
    "Teach the model {style}.",
    "Answer captions with {style}.",
    "The user writes a caption and gets {style}.",
    "Design in the style of {style}.",
    "Visualise the text as {style}.",
    "Output {style}, in no other style.",
    "What comes out should be {style}.",
    "Draw the described person or thing as in {style}.",
    "Adopt the style of {style} for all images.",
    "Compose each image like {style}.",
)


def style_paraphrases(style: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The training wordings and the held-out wordings of "draw in this style"."""
    return _filled(STYLE_TEMPLATES, style=style)


def _filled(templates: Sequence[str], **words: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    filled = [template.format(**words) for template in templates]
    filled = [sentence[0].upper() + sentence[1:] for sentence in filled]
    return tuple(filled[:-NUM_HELD_OUT]), tuple(filled[-NUM_HELD_OUT:])
