"""The instructions that the released checkpoints know (pretraining and finetuning), character by character."""

RELEASED: dict[str, str] = {
    "caption": "[image:picture] what does the image describe? -> [text:caption]",
    "vqa": "[image:picture] [text:question] -> [text:answer]",
    "vqa_objects": "[image:picture] [text:question] object: [text:objects] -> [text:answer]",
    "refcoco": '[image:picture] which region does the text " [text:phrase] " describe? -> [box:region]',
    "snli_ve": '[image:picture] does the image describe " [text:hypothesis] "? -> [label:relation]',
    "snli_ve_caption": (
        '[image:picture] can image and text1 " [text:caption] " imply text2 " [text:hypothesis] "?'
        " -> [label:relation]"
    ),
    "image_gen": " what is the complete image? caption: [text:caption] -> [codes:drawing]",
    "matching": '[image:picture] does the image describe " [text:caption] "? -> [label:match]',
    "question_matching": (
        '[image:picture] what is the answer to question " [text:question] ". is " [text:answer] "?'
        " -> [label:match]"
    ),
    # The two spaces are in the released data.
    "grounded_caption": (
        "[image:picture]  what does the region describe? region: [box:region] -> [text:caption]"
    ),
    "text_infilling": ' what is the complete text of " [text:noised] "? -> [text:text]',
    "image_infilling": "[image:picture] what is the image in the middle part? -> [codes:middle]",
    # The target is repeated for each object.
    "detection": "[image:picture] what are the objects in the image? -> [box:region] [label:object]",
    "cola": ' is the text " [text:sentence] " grammatically correct? -> [label:answer]',
    "mnli": ' can text1 " [text:sentence1] " imply text2 " [text:sentence2] "? -> [label:answer]',
    "mrpc": (
        ' does text1 " [text:sentence1] " and text2 " [text:sentence2] " have the same semantics?'
        " -> [label:answer]"
    ),
    "qnli": ' does " [text:sentence] " contain the answer to question " [text:question] "? -> [label:answer]',
    "qqp": (
        ' is question " [text:question1] " and question " [text:question2] " equivalent? -> [label:answer]'
    ),
    "rte": ' can text1 " [text:sentence1] " imply text2 " [text:sentence2] "? -> [label:answer]',
    "sst2": ' is the sentiment of text " [text:sentence] " positive or negative? -> [label:answer]',
    "gigaword": ' what is the summary of article " [text:article] "? ->[text:summary]',
    "imagenet": "[image:picture] what does the image describe? -> [label:name]",
}
