// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {EnumerableSet} from "@openzeppelin/contracts/utils/structs/EnumerableSet.sol";

import {IOperatorRegistry} from "./interfaces/IOperatorRegistry.sol";

/// @notice IOperatorRegistry says what it does.
contract OperatorRegistry is IOperatorRegistry {
    using EnumerableSet for EnumerableSet.AddressSet;
    using SafeERC20 for IERC20;

    uint256 public constant LONGEST_ENDPOINT = 256;
    uint256 public constant LONGEST_MODEL_NAME = 64;
    uint256 public constant MOST_MODELS = 16;

    IERC20 public immutable token;
    uint256 public immutable minimumStake;
    uint64 public immutable unbondingDelay;

    mapping(address key => address operator) public accountOf;
    mapping(address operator => Operator) private _operators;
    EnumerableSet.AddressSet private _listed;

    constructor(IERC20 token_, uint256 minimumStake_, uint64 unbondingDelay_) {
        if (minimumStake_ == 0) revert MinimumStakeIsZero();
        if (unbondingDelay_ == 0) revert UnbondingDelayIsZero();
        token = token_;
        minimumStake = minimumStake_;
        unbondingDelay = unbondingDelay_;
    }

    /// @inheritdoc IOperatorRegistry
    function register(address key, string calldata endpoint, Model[] calldata models) external {
        if (_isRegistered(msg.sender)) revert AlreadyRegistered(msg.sender);

        _operators[msg.sender].account = msg.sender;
        _describe(msg.sender, key, endpoint, models);

        emit Registered(msg.sender, key, endpoint);
    }

    /// @inheritdoc IOperatorRegistry
    function update(address key, string calldata endpoint, Model[] calldata models) external {
        _registered(msg.sender);

        _describe(msg.sender, key, endpoint, models);

        emit Updated(msg.sender, key, endpoint);
    }

    /// @inheritdoc IOperatorRegistry
    function stake(uint256 amount) external {
        Operator storage operator = _registered(msg.sender);
        if (amount == 0) revert AmountIsZero();

        operator.stake += amount;
        _relist(operator);

        emit Staked(msg.sender, amount, operator.stake);
        token.safeTransferFrom(msg.sender, address(this), amount);
    }

    /// @inheritdoc IOperatorRegistry
    function startUnbonding(uint256 amount) external {
        Operator storage operator = _registered(msg.sender);
        if (amount == 0) revert AmountIsZero();
        if (amount > operator.stake) revert StakeTooSmall(operator.stake, amount);

        operator.stake -= amount;
        operator.unbonding += amount;
        operator.withdrawableAt = uint64(block.timestamp) + unbondingDelay;
        _relist(operator);

        emit UnbondingStarted(msg.sender, amount, operator.stake, operator.withdrawableAt);
    }

    /// @inheritdoc IOperatorRegistry
    function withdraw() external {
        Operator storage operator = _registered(msg.sender);
        uint256 amount = operator.unbonding;
        if (amount == 0) revert NothingToWithdraw(msg.sender);
        if (block.timestamp < operator.withdrawableAt) revert StillUnbonding(operator.withdrawableAt, block.timestamp);

        operator.unbonding = 0;
        operator.withdrawableAt = 0;

        emit Withdrawn(msg.sender, amount);
        token.safeTransfer(msg.sender, amount);
    }

    /// @inheritdoc IOperatorRegistry
    function pause() external {
        Operator storage operator = _registered(msg.sender);
        if (operator.paused) revert AlreadyPaused(msg.sender);

        operator.paused = true;

        emit Paused(msg.sender);
    }

    /// @inheritdoc IOperatorRegistry
    function unpause() external {
        Operator storage operator = _registered(msg.sender);
        if (!operator.paused) revert NotPaused(msg.sender);

        operator.paused = false;

        emit Unpaused(msg.sender);
    }

    /// @inheritdoc IOperatorRegistry
    function isActive(address operator) external view returns (bool) {
        return _listed.contains(operator) && !_operators[operator].paused;
    }

    /// @inheritdoc IOperatorRegistry
    function operatorOf(address operator) external view returns (Operator memory) {
        return _registered(operator);
    }

    /// @inheritdoc IOperatorRegistry
    function operatorCount() external view returns (uint256) {
        return _listed.length();
    }

    /// @inheritdoc IOperatorRegistry
    function operators(uint256 offset, uint256 limit) external view returns (Operator[] memory page) {
        uint256 count = _listed.length();
        uint256 left = offset < count ? count - offset : 0;
        page = new Operator[](limit < left ? limit : left);
        for (uint256 i = 0; i < page.length; ++i) {
            page[i] = _operators[_listed.at(offset + i)];
        }
    }

    function _describe(address account, address key, string calldata endpoint, Model[] calldata models) private {
        if (key == address(0)) revert KeyIsZero();
        address holder = accountOf[key];
        if (holder != address(0) && holder != account) revert KeyTaken(key, holder);
        uint256 length = bytes(endpoint).length;
        if (length == 0 || length > LONGEST_ENDPOINT) revert EndpointLength(length, LONGEST_ENDPOINT);
        if (models.length == 0 || models.length > MOST_MODELS) revert ModelCount(models.length, MOST_MODELS);

        accountOf[key] = account;
        Operator storage operator = _operators[account];
        operator.key = key;
        operator.endpoint = endpoint;
        delete operator.models;
        for (uint256 i = 0; i < models.length; ++i) {
            length = bytes(models[i].name).length;
            if (length == 0 || length > LONGEST_MODEL_NAME) revert ModelNameLength(models[i].name, LONGEST_MODEL_NAME);
            if (models[i].manifestHash == 0) revert ModelHashIsZero(models[i].name);
            operator.models.push(models[i]);
        }
    }

    /// @dev Keeps the list what its documentation says: exactly those whose stake is at least the minimum.
    function _relist(Operator storage operator) private {
        if (operator.stake >= minimumStake) _listed.add(operator.account);
        else _listed.remove(operator.account);
    }

    function _registered(address account) private view returns (Operator storage) {
        if (!_isRegistered(account)) revert NotRegistered(account);
        return _operators[account];
    }

    function _isRegistered(address account) private view returns (bool) {
        return _operators[account].account != address(0);
    }
}
