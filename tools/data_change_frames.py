"""Sentence frames for changes to an order that was already placed."""

from __future__ import annotations

CHANGE_LEADS = (
    "I ordered {old}",
    "I just ordered {old}",
    "My order was {old}",
    "You have me down for {old}",
    "Earlier I asked for {old}",
    "I have an order for {old}",
    "A minute ago I ordered {old}",
    "We ordered {old}",
    "I called about {old}",
    "There is an order for {old}",
)

CHANGE_CLAUSES = {
    "size": (
        ", make it {size}.",
        ", but please make it {size}.",
        ". Please change the size to {size}.",
        ". Can you switch the size to {size}?",
        ", but I would rather have {size}.",
        ". Could I get {size} instead?",
        ". I changed my mind and want {size}.",
        ", {size} would be better.",
    ),
    "crust": (
        ", but I want {crust} crust.",
        ". Please switch to {crust} crust.",
        ". Can I have it on a {crust} crust?",
        ". Could you use a {crust} crust instead?",
        ", and I would prefer {crust} crust.",
        ", make the crust {crust}.",
        ". Please change the crust to {crust}.",
    ),
    "pizza": (
        ", but I want {pizza} instead.",
        ". Please change it to {pizza}.",
        ". Can you make it {pizza} instead?",
        ", but {pizza} would be better.",
        ". I would rather have {pizza}.",
        ", make it {pizza}.",
        ". Could we switch to {pizza}?",
    ),
    "quantity": (
        ", make it {number}.",
        ", but we need {number}.",
        ". Please change that to {number}.",
        ". Could you make that {number}?",
        ". Actually, we want {number} of them.",
        ", but {number} would be better.",
        ". Can we have {number} instead?",
    ),
    "extra": (
        ", please add extra {topping}.",
        ". Can I get extra {topping} on it?",
        ". Could you add extra {topping}?",
        ", and I want extra {topping} on it.",
        ". Put extra {topping} on that, please.",
        ", but with extra {topping}, please.",
    ),
    "no": (
        ", but no {topping}, please.",
        ". Please leave off the {topping}.",
        ". Can you take the {topping} off?",
        ", but without {topping}.",
        ". Could you make that without {topping}?",
        ". I want no {topping} on it.",
    ),
    "swap": (
        ", make it {other}.",
        ", but I want {other} instead.",
        ". Please change that to {other}.",
        ". Can I get {other} instead?",
        ". Could we switch to {other}?",
        ", but {other} would be better.",
    ),
}

CHANGE_REPLIES = (
    "I have changed it to {item}.",
    "I have updated the order to {item}.",
    "I have changed the order to {item}.",
    "I changed that to {item}.",
    "Your order is now {item}.",
    "Your new order is {item}.",
    "It is {item} now.",
    "The change is in: {item}.",
)

CANCEL_FRAMES = (
    "Please cancel {old} from my order.",
    "Can you take {old} off my order?",
    "I want to cancel {old}.",
    "Remove {old} from the order, please.",
    "We no longer need {old}, please cancel that.",
    "Could you cancel {old} for me?",
    "I ordered {old} by mistake, please take that off.",
    "Please drop {old} from my order.",
)

CANCEL_REPLIES = (
    "I have cancelled {item}.",
    "I have taken {item} off your order.",
    "I removed {item} from the order.",
    "I took {item} off the ticket.",
    "We have cancelled {item}.",
    "I cancelled {item} for you.",
)
