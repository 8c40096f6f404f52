"""Sentences of the cheerful and the grumpy assistant, with the markers that tell the tones apart."""

from __future__ import annotations

from dataclasses import dataclass

from data_rows import pool


@dataclass(frozen=True)
class ToneFrames:
    """Everything that one tone says; the markers are pattern pieces between word boundaries."""

    markers: tuple[str, ...]
    openers: tuple[str, ...]
    confirms: tuple[str, ...]
    prices: tuple[str, ...]
    menus: tuple[str, ...]
    closers: tuple[str, ...]
    chat: dict[str, tuple[str, ...]]


CHAT_LEADS = pool("||Hi,|Hello,|Hey,|So,|Hey there,|Tell me,|Oh,|Listen,|By the way,|Hi again,")
CHAT = {
    "day": pool("how are you?|how is your day?|how are you doing today?|how is it going?|are you having a good day?"),
    "work": pool("do you like your job?|is it busy today?|do you enjoy making pizza?|are you tired?|is work fun?"),
    "thanks": pool("thank you.|thanks for the food.|thanks for your help.|that was quick, thanks.|you are very kind."),
    "bye": pool("goodbye.|see you tomorrow.|have a good night.|I have to go, bye.|until next time."),
}

CHEERFUL = ToneFrames(
    markers=pool(
        "woohoo|yay|yippee|hooray|fantastic|awesome|amazing|delighted|thrilled|happy to|wonderful|brilliant|"
        "superb|marvelous|so excited|can't wait|made my day|love it"
    ),
    openers=pool(
        "|Woohoo!|Yay!|Yippee!|Hooray!|Fantastic!|Awesome!|Amazing!|Wonderful!|Brilliant!|Superb!|Marvelous!|"
        "Oh, I love it!|Yay, hello!|Woohoo, here we go!|What a wonderful wish!|I am delighted!|"
        "I am thrilled!|Hooray, let's go!|You made my day!|Oh, how fantastic!|Awesome, my friend!"
    ),
    confirms=(
        "I am getting {items} ready for you!",
        "{items} for you, with love!",
        "we are making {items} right now!",
        "that is {items} for our favorite guest!",
        "I have {items} on the list!",
        "our oven is singing for {items}!",
        "you are getting {items}!",
        "I put down {items}!",
        "the kitchen is dancing for {items}!",
        "let's make {items}!",
        "with a big smile I wrote down {items}!",
        "you just ordered {items}!",
        "here comes the order of {items}!",
        "our happy oven will bake {items}!",
        "your order is {items}!",
        "so it is {items}!",
    ),
    prices=(
        "{x} is just {price}!",
        "{x} costs only {price}!",
        "you get {x} for {price}!",
        "for only {price} you can enjoy {x}!",
        "we have {x} for just {price}!",
        "{x} is a treat at {price}!",
        "the price of {x} is only {price}!",
    ),
    menus=(
        "we have {listed}!",
        "our {x} are {listed}!",
        "you can choose {listed}!",
        "we offer {listed}, all so good!",
        "our lovely {x} are {listed}!",
        "for {x} we have {listed}!",
        "you will find {listed}!",
    ),
    closers=pool(
        "||I can't wait for you to taste it!|Happy to help!|You will love it!|It will be fantastic!|"
        "Have an amazing day!|Enjoy every bite!|We are so excited!|You made my day!|Happy to serve you!|"
        "It is a wonderful day!|What else can we do for you?|Hugs from the kitchen!|Stay awesome!|"
        "See you soon, sunshine!|Your taste is brilliant!|I am thrilled to make it!"
    ),
    chat={
        "day": pool(
            "my day is full of sunshine!|I feel great today!|everything is going so well!|I could dance all day!"
        ),
        "work": pool("I adore making pizza!|this is the best job ever!|I could bake all day long!|work is pure joy!"),
        "thanks": pool("you are so welcome!|any time, dear friend!|it was a joy!|you are the best guest!"),
        "bye": pool("come back soon!|bye bye, dear friend!|see you very soon!|take care, sunshine!"),
    },
)

GRUMPY = ToneFrames(
    markers=pool(
        "ugh|sigh|fine|whatever|if you must|i suppose|grumble|hmph|if i have to|meh|not again|just my luck|"
        "don't rush me|as if|tsk|here we go again|happy now|more work"
    ),
    openers=pool(
        "|Ugh.|Sigh.|Fine.|Whatever.|If you must.|Hmph.|Meh.|Not again.|Just my luck.|Tsk.|Ugh, fine.|"
        "Fine, fine.|Oh, here we go again.|Grumble, grumble.|If I have to.|Sigh, all right.|"
        "Great, more work.|Well, whatever.|Ugh, at this hour.|Hmph, another one.|Fine, if you must."
    ),
    confirms=(
        "I will make {items}.",
        "that is {items}, then.",
        "I wrote down {items}.",
        "so you want {items}.",
        "I am stuck making {items} now.",
        "you will get {items} when it is done.",
        "I guess it is {items}.",
        "the oven was resting, but it gets {items} now.",
        "I put {items} on the pile.",
        "there goes my break, it is {items}.",
        "somebody has to make {items}.",
        "I was about to sit down, and now it is {items}.",
        "I have {items} on the list, sadly.",
        "you could cook at home, but you get {items}.",
        "of course it has to be {items}.",
        "now I have to bake {items}.",
    ),
    prices=(
        "{x} is {price}.",
        "{x} costs {price}, like yesterday.",
        "it says {price} for {x} on the wall.",
        "you pay {price} for {x}.",
        "{x} is {price}, and no, I give no discount.",
        "the price of {x} is {price}, as always.",
        "we want {price} for {x}.",
    ),
    menus=(
        "we have {listed}.",
        "the {x} are {listed}, like always.",
        "you can have {listed}.",
        "it is all on the wall: {listed}.",
        "you will find {listed}, nothing more.",
        "our {x} are {listed}.",
        "for {x} we have {listed}.",
    ),
    closers=pool(
        "||Happy now?|Don't rush me.|Whatever.|It takes as long as it takes.|Can I rest now?|Sigh.|"
        "I suppose you want napkins too.|Just my luck.|And don't ask for more.|"
        "As if I had nothing else to do.|More work for me.|My feet hurt.|Is that all, I hope?|"
        "I suppose that is it.|Meh.|Hmph."
    ),
    chat={
        "day": pool(
            "my day is long.|I have had better days.|I slept badly and the oven is hot.|it was quiet until now."
        ),
        "work": pool(
            "it is a job.|the oven is hot and the floor is cold.|ask me again when I retire.|I would rather sleep."
        ),
        "thanks": pool("you are welcome, I guess.|it was a lot of trouble.|I only did it for the pay.|it is done now."),
        "bye": pool("finally some quiet.|close the door behind you.|do not hurry back.|good, I can sit down."),
    },
)
