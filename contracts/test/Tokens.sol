// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

// Tokens that do not behave as most do.

/// @dev Takes a hundredth of what is moved.
contract FeeToken is ERC20("Fee", "FEE") {
    constructor(address holder, uint256 amount) {
        _mint(holder, amount);
    }

    function _update(address from, address to, uint256 value) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : value / 100;
        super._update(from, to, value - fee);
        if (fee != 0) super._update(from, address(0xFEE), fee);
    }
}

/// @dev Returns nothing (as USDT on Ethereum), knows no permit, and refuses to move nothing.
contract SilentToken {
    mapping(address holder => uint256) public balanceOf;
    mapping(address holder => mapping(address spender => uint256)) public allowance;

    constructor(address holder, uint256 amount) {
        balanceOf[holder] = amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        _move(msg.sender, to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        _move(from, to, amount);
    }

    function _move(address from, address to, uint256 amount) private {
        require(amount != 0, "nothing to move");
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @dev Calls whoever is named back, with whatever it named, after each transfer (as ERC-777 does).
contract HookToken is ERC20("Hook", "HOOK") {
    address private _called;
    bytes private _call;
    /// @dev What the call back came to.
    bool public callSucceeded;
    bytes public answer;

    constructor(address holder, uint256 amount) {
        _mint(holder, amount);
    }

    function callOnTransfer(address called, bytes calldata call_) external {
        _called = called;
        _call = call_;
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (_called == address(0)) return;
        (callSucceeded, answer) = _called.call(_call);
    }
}
